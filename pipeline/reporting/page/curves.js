// The training curves.
const CHART = { width: 560, height: 220, left: 50, right: 10, top: 10, bottom: 34 };

function chart(title, lines, dots, fromZero) {
  const points = [...lines, ...dots].flatMap((one) => one.points);
  if (!points.length) return make("div", {});
  const reach = (index, pick, start) => points.reduce((found, point) => pick(found, point[index]), start);
  let [least, most] = [reach(1, Math.min, fromZero ? 0 : Infinity), reach(1, Math.max, -Infinity)];
  if (least === most) [least, most] = [least - 0.5, most + 0.5];
  const step = niceStep(most - least, 5);
  least = step * Math.floor(least / step);
  most = step * Math.ceil(most / step);
  const last = reach(0, Math.max, 0) || 1;
  const x = (value) => CHART.left + ((CHART.width - CHART.left - CHART.right) * value) / last;
  const y = (value) => CHART.height - CHART.bottom - ((CHART.height - CHART.top - CHART.bottom) * (value - least)) / (most - least);
  const parts = [];
  for (let tick = 0; tick <= Math.round((most - least) / step); tick += 1) {
    const value = rounded(least + tick * step);
    parts.push(draw("line", { class: "grid", x1: CHART.left, x2: CHART.width - CHART.right, y1: y(value), y2: y(value) }));
    const text = Math.abs(value) >= 10000 ? `${plain(value / 1000)}k` : Math.abs(value) < 0.0001 && value ? value.toExponential(0) : plain(value);
    parts.push(draw("text", { x: CHART.left - 6, y: y(value) + 4, "text-anchor": "end" }, text));
  }
  const across = niceStep(last, 6);
  for (let value = 0; value <= last * 1.0001; value += across) {
    parts.push(draw("text", { x: x(value), y: CHART.height - CHART.bottom + 16, "text-anchor": "middle" }, plain(value)));
  }
  parts.push(draw("text", { x: (CHART.left + CHART.width) / 2, y: CHART.height - 3, "text-anchor": "middle" }, "epochs"));
  for (const { run, points: own } of lines) {
    const path = own.map(([at, value], index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`).join("");
    parts.push(draw("path", { class: `curve run-${run}`, d: path }));
  }
  for (const { run, points: own } of dots) {
    for (const [at, value] of own) {
      const dot = draw("circle", { class: `dot run-${run}`, cx: x(at), cy: y(value), r: 4 });
      dot.append(draw("title", {}, `${comparing ? `${letters[run]}, ` : ""}epoch ${plain(at)}: ${plain(value)}`));
      parts.push(dot);
    }
  }
  const ends = [...lines, ...dots].filter((one) => one.points.length);
  const told = ends.map(({ run, what, points: own }) => `${runs[run].name}, ${what}: from ${plain(own[0][1])} to ${plain(own.at(-1)[1])}`);
  const size = `0 0 ${CHART.width} ${CHART.height}`;
  const picture = draw("svg", { class: "chart", viewBox: size, role: "img", "aria-label": `${title}. ${told.join("; ")}.` }, ...parts);
  return make("figure", {}, make("figcaption", {}, title), points.length ? picture : make("p", { class: "quiet" }, "Not logged."));
}

function showCurves() {
  const container = find("curve-panels");
  runs.forEach((run, index) => {
    if (run.curves === null) container.append(make("p", { class: "note" }, comparing ? runName(index) : "", comparing ? ": " : "", run.curvesNote));
  });
  // As wide as the page allows, so that the numbers on the axes keep their size.
  CHART.width = Math.max(280, Math.min(640, matchMedia("(min-width: 48rem)").matches ? container.clientWidth / 2 : container.clientWidth));
  const logged = runs.map((_, run) => run).filter((run) => runs[run].curves !== null);
  if (!logged.length) return;
  if (comparing) container.append(make("ul", { class: "legend" }, ...logged.map((run) => make("li", {}, runName(run)))));
  const column = (part, name, what) =>
    logged.map((run) => {
      const { epochs, [name]: values } = runs[run].curves[part];
      return { run, what, points: epochs.map((at, index) => [at, values[index]]).filter((point) => point[1] !== null) };
    });
  const scored = column("validation", "val_cider", "validation");
  container.append(
    make(
      "div",
      { class: "panels" },
      chart("Loss in nats per token (line: training, dots: validation)", column("training", "mean_loss", "training"), column("validation", "val_loss", "validation"), false),
      chart("CIDEr on the validation split", scored, scored, true),
      chart("Learning rate", column("training", "lr", "training"), [], true),
      chart("Captions per second", column("training", "captions_per_second", "training"), [], true),
    ),
  );
  const rows = logged.flatMap((run) => {
    const { step, epochs, val_loss: loss, val_cider: cider } = runs[run].curves.validation;
    const text = (value) => (value === null ? "\u2013" : value.toFixed(4));
    return step.map((at, index) =>
      make(
        "tr",
        {},
        comparing ? make("th", { scope: "row" }, runName(run)) : null,
        ...[plain(epochs[index]), integers.format(at), text(loss[index]), text(cider[index])].map((cell) => make("td", { class: "number" }, cell)),
      ),
    );
  });
  if (!rows.length) return;
  const titles = [...(comparing ? ["Run"] : []), "Epoch", "Step", "Loss", "CIDEr"];
  const heads = titles.map((title) => make("th", { scope: "col", class: title === "Run" ? null : "number" }, title));
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  container.append(make("details", {}, make("summary", {}, "Validation results as a table"), scrolling("Validation results", table)));
}
