// The tables of settings.
function showSettings() {
  const container = find("setting-tables");
  const bodies = [];
  data.settings.forEach(({ title, rows, missing }) => {
    container.append(make("h3", {}, title));
    if (missing.length) {
      const what = title === "Training" ? "No training config found" : "The score file does not say how it was made";
      container.append(make("p", { class: "note" }, comparing ? `${what}: ${missing.join(", ")}.` : `${what}.`));
    }
    if (!rows.length) return;
    const body = make("tbody");
    for (const [key, cells] of rows) {
      const differs = new Set(cells).size > 1;
      const name = make("th", { scope: "row" }, differs ? make("span", { "aria-hidden": "true" }, "\u2260 ") : null, key, differs ? hiddenText(" (differs)") : null);
      body.append(make("tr", { class: differs ? "differs" : null }, name, ...cells.map((cell) => userText("td", {}, cell ?? "\u2013"))));
    }
    bodies.push(body);
    const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Setting"), ...runs.map((_, run) => make("th", { scope: "col" }, comparing ? runName(run) : "Value"))));
    container.append(scrolling(title, make("table", { class: "settings" }, head, body)));
  });
  if (!comparing || !bodies.length) return;
  const only = (event) => {
    for (const row of bodies.flatMap((body) => [...body.rows])) row.hidden = event.target.checked && !row.classList.contains("differs");
  };
  container.prepend(make("label", { class: "check" }, make("input", { type: "checkbox", id: "only-differences", onchange: only }), "Only differences"));
}
