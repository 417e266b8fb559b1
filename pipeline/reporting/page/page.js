// The report's page. All text of others comes from the JSON in #data and enters the page as text, never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const runs = data.runs;
  const several = runs.length > 1;
  const letters = "ABCDEFGH";
  const whole = new Intl.NumberFormat("en");
  const IMAGE = { id: 0, file: 1, references: 2, said: 3 };
  const SAID = { caption: 0, scores: 1, alternatives: 2 };

  // ---- Building blocks

  const find = (id) => document.getElementById(id);

  function make(name, attributes = {}, ...children) {
    const element = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
      else if (value === true) element.setAttribute(key, "");
      else if (value !== false && value !== null && value !== undefined) element.setAttribute(key, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  function draw(name, attributes, ...children) {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children);
    return element;
  }

  // A stranger's text may run from right to left, or turn round what follows it: it is kept to itself.
  const foreign = (name, attributes, text) => make(name, { dir: "auto", ...attributes }, text);
  const chip = (run) => make("span", { class: `chip run-${run}`, "aria-hidden": "true" }, letters[run]);
  const spoken = (text) => make("span", { class: "hidden" }, text);
  const runName = (run) => make("span", {}, chip(run), " ", foreign("bdi", {}, runs[run].name));
  const images = (count) => `${whole.format(count)} ${count === 1 ? "image" : "images"}`;
  const signed = (value, digits = 3) => {
    const text = Math.abs(value).toFixed(digits);
    return Number(text) === 0 ? text : `${value < 0 ? "\u2212" : "+"}${text}`;
  };
  const plain = (value) => String(Number(value.toPrecision(4)));

  function figure(score, value) {
    if (score.share && value >= 0 && value <= 1) return `${(100 * value).toFixed(1)}%`;
    return value.toFixed(score.descriptive ? 2 : 3);
  }

  function niceStep(span, wanted) {
    const rough = span / wanted || 1;
    const power = 10 ** Math.floor(Math.log10(rough));
    return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  }

  const rounded = (value) => Number(value.toPrecision(10));

  // ---- Top of the page

  function showSummary() {
    const names = runs.flatMap((_, run) => [run ? (run === runs.length - 1 ? " and " : ", ") : "", several ? runName(run) : foreign("bdi", {}, runs[run].name)]);
    const where = data.split ? [" on the split ", foreign("b", {}, data.split)] : [];
    find("summary").append(...names, ...where, `: ${images(data.images.length)}.`);
    document.title = `${runs.map((run) => run.name).join(", ")}: captions, scored`;
    for (const note of data.notes) find("notes").append(foreign("p", { class: "note" }, note));
    for (const note of new Set(runs.flatMap((run) => run.notes))) {
      const said = runs.map((_, run) => run).filter((run) => several && runs[run].notes.includes(note));
      const whose = said.flatMap((run) => [chip(run), spoken(`${runs[run].name}: `), " "]);
      find("notes").append(make("p", { class: "note" }, ...whose, foreign("bdi", {}, note)));
    }
  }

  // ---- Scores

  function intervalPicture(run, [value, low, high], [least, most]) {
    const x = (number) => 4 + (136 * (number - least)) / (most - least || 1);
    return draw(
      "svg",
      { class: `interval run-${run}`, viewBox: "0 0 144 14", "aria-hidden": "true", focusable: "false" },
      draw("line", { class: "track", x1: 0, x2: 144, y1: 7, y2: 7 }),
      draw("line", { class: "range", x1: x(low), x2: x(high), y1: 7, y2: 7 }),
      draw("circle", { class: "value", cx: x(value), cy: 7, r: 4 }),
    );
  }

  function rowScale(score, cells) {
    const there = cells.filter((cell) => cell !== null);
    const lows = Math.min(...there.map((cell) => cell[1]), ...there.map((cell) => cell[0]));
    const highs = Math.max(...there.map((cell) => cell[2]), ...there.map((cell) => cell[0]));
    if (several) {
      const margin = 0.15 * (highs - lows) || 0.01;
      return [lows - margin, highs + margin];
    }
    if (highs <= 1 && lows >= 0 && score.name !== "cider") return [0, 1];
    const step = niceStep(highs, 4);
    return [Math.min(0, lows), step * Math.ceil(highs / step)];
  }

  function showScores() {
    const body = make("tbody");
    let descriptive = false;
    data.scores.forEach((score, index) => {
      const cells = runs.map((run) => run.scores[index]);
      if (cells.every((cell) => cell === null)) return;
      const scale = rowScale(score, cells);
      const row = make("tr", { class: score.descriptive && !descriptive ? "apart" : null }, make("th", { scope: "row" }, score.label));
      descriptive = score.descriptive;
      cells.forEach((cell, run) => {
        if (cell === null) return row.append(make("td", { class: "quiet" }, "not measured"));
        const [value, low, high] = cell.map((number) => figure(score, number));
        const bounds = make("span", { class: "quiet" }, spoken("95% interval "), `${low} to ${high}`);
        return row.append(make("td", {}, make("div", { class: "score" }, make("b", {}, value), bounds, intervalPicture(run, cell, scale))));
      });
      body.append(row);
    });
    const head = make("tr", {}, make("td"), ...runs.map((_, run) => make("th", { scope: "col" }, several ? runName(run) : foreign("bdi", {}, runs[run].name))));
    const scales = several ? "Bars of one row share one scale, which need not begin at 0." : "Bars begin at 0.";
    const about = `Each score with its 95% bootstrap interval over the images. ${scales} Below the line stands what describes the captions and does not judge them.`;
    find("score-table").append(make("p", { class: "quiet small" }, about), scrolling("Scores", make("table", {}, make("thead", {}, head), body)));
  }

  const scrolling = (name, content) => make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, content);

  function showDifferences() {
    if (!several) return;
    const place = find("differences");
    place.append(make("h3", {}, "The same images, compared pair by pair"));
    data.differences.forEach((found, index) => {
      const run = index + 1;
      for (const one of found) {
        const [value, low, high] = one.change;
        const holdsZero = low <= 0 && high >= 0;
        const reading = holdsZero
          ? "The interval holds 0: these images do not tell the two apart."
          : `The interval leaves 0 out: on images like these, ${letters[value > 0 ? run : 0]} scores higher. ` +
            "It says nothing of another training's seed, of other data, or of what people would prefer.";
        place.append(
          make(
            "p",
            {},
            make("b", {}, `${one.label}, ${letters[run]} less ${letters[0]}: ${signed(value)}`),
            ` (95% of resamples: ${signed(low)} to ${signed(high)}; ${images(one.images)}, ${whole.format(one.higher)} higher, ` +
              `${whole.format(one.lower)} lower, ${whole.format(one.equal)} equal). ${reading}`,
          ),
        );
      }
      if (!found.length) place.append(make("p", {}, `${letters[run]} and ${letters[0]} have no score of single images in common that could be compared.`));
    });
  }

  function showHistograms() {
    const index = Math.max(0, data.perImage.findIndex((score) => score.name === "cider"));
    const score = data.perImage[index];
    if (!score) return;
    const values = runs.map((_, run) => data.images.map((image) => scoreOf(image, run, index)).filter((value) => value !== null));
    const highest = Math.max(0, ...values.map((own) => own.reduce((most, value) => Math.max(most, value), 0)));
    const step = niceStep(highest || 1, 30);
    const edges = Array.from({ length: Math.floor(highest / step) + 2 }, (_, bin) => rounded(bin * step));
    const counts = values.map((own) => {
      const count = new Array(edges.length - 1).fill(0);
      for (const value of own) {
        let bin = Math.min(count.length - 1, Math.max(0, Math.floor(value / step)));
        while (bin > 0 && edges[bin] > value) bin -= 1;
        while (bin < count.length - 1 && edges[bin + 1] <= value) bin += 1;
        count[bin] += 1;
      }
      return count;
    });
    const tallest = Math.max(1, ...counts.flat());
    const place = find("histograms");
    place.append(make("h3", {}, `${score.label} of single images`), make("p", { class: "quiet small" }, "A bar shows its images in the gallery."));
    const grid = make("div", { class: "histograms" });
    counts.forEach((count, run) => {
      const bars = make("div", { class: `bars run-${run}`, role: "group", "aria-label": `${score.label} of single images, ${runs[run].name}` });
      count.forEach((number, bin) => {
        const bar = make("span");
        bar.style.height = `${number ? Math.max(1, (100 * number) / tallest) : 0}%`;
        const text = `${plain(edges[bin])} to ${plain(edges[bin + 1])}: ${images(number)}`;
        const chosen = () => showRange(`score-${index}-${run}`, edges[bin], edges[bin + 1]);
        bars.append(make("button", { type: "button", "aria-label": text, title: text, onclick: chosen, disabled: number === 0 }, bar));
      });
      const ends = make("div", { class: "ticks", "aria-hidden": "true" }, make("span", {}, plain(edges[0])), make("span", {}, plain(edges.at(-1))));
      grid.append(make("div", {}, several ? make("p", { class: "small" }, runName(run)) : null, bars, ends));
    });
    place.append(grid);
  }

  // ---- Curves

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
        dot.append(draw("title", {}, `${several ? `${letters[run]}, ` : ""}epoch ${plain(at)}: ${plain(value)}`));
        parts.push(dot);
      }
    }
    const ends = [...lines, ...dots].filter((one) => one.points.length);
    const told = ends.map(({ run, what, points: own }) => `${runs[run].name}, ${what}: from ${plain(own[0][1])} to ${plain(own.at(-1)[1])}`);
    const size = `0 0 ${CHART.width} ${CHART.height}`;
    const picture = draw("svg", { class: "chart", viewBox: size, role: "img", "aria-label": `${title}. ${told.join("; ")}.` }, ...parts);
    return make("figure", {}, make("figcaption", {}, title), points.length ? picture : make("p", { class: "quiet" }, "Nothing of this was logged."));
  }

  function showCurves() {
    const place = find("curve-panels");
    runs.forEach((run, index) => {
      if (run.curves === null) place.append(make("p", { class: "note" }, several ? runName(index) : "", several ? ": " : "", run.curvesNote));
    });
    // As wide as there is room for, so that the figures of the axes keep their size.
    CHART.width = Math.max(280, Math.min(640, matchMedia("(min-width: 48rem)").matches ? place.clientWidth / 2 : place.clientWidth));
    const logged = runs.map((_, run) => run).filter((run) => runs[run].curves !== null);
    if (!logged.length) return;
    if (several) place.append(make("ul", { class: "legend" }, ...logged.map((run) => make("li", {}, runName(run)))));
    const column = (part, name, what) =>
      logged.map((run) => {
        const { epochs, [name]: values } = runs[run].curves[part];
        return { run, what, points: epochs.map((at, index) => [at, values[index]]).filter((point) => point[1] !== null) };
      });
    const scored = column("validation", "val_cider", "validation");
    place.append(
      make(
        "div",
        { class: "panels" },
        chart("Loss in nats per token: line training, dots validation", column("training", "mean_loss", "training"), column("validation", "val_loss", "validation"), false),
        chart("CIDEr of captions in validation", scored, scored, true),
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
          several ? make("th", { scope: "row" }, runName(run)) : null,
          ...[plain(epochs[index]), whole.format(at), text(loss[index]), text(cider[index])].map((cell) => make("td", { class: "number" }, cell)),
        ),
      );
    });
    if (!rows.length) return;
    const titles = [...(several ? ["Run"] : []), "Epoch", "Step", "Loss", "CIDEr"];
    const heads = titles.map((title) => make("th", { scope: "col", class: title === "Run" ? null : "number" }, title));
    const table = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
    place.append(make("details", {}, make("summary", {}, "Validations as a table"), scrolling("Validations", table)));
  }

  // ---- Gallery: which images, in which order

  const said = (image, run) => image[IMAGE.said][run];
  const scoreOf = (image, run, index) => said(image, run)?.[SAID.scores][index] ?? null;
  const words = (text) => (text.trim() ? text.trim().split(/\s+/).length : 0);
  const captions = (image) => image[IMAGE.said].filter((own) => own !== null).map((own) => own[SAID.caption]);

  function sortings() {
    const found = [];
    data.perImage.forEach((score, index) => {
      const orders = ["Worst first", "Best first"];
      runs.forEach((_, run) => {
        const title = several ? `${score.label} of ${letters[run]}` : score.label;
        found.push({ key: `score-${index}-${run}`, title, score: index, orders, of: (image) => scoreOf(image, run, index) });
      });
      for (let run = 1; run < runs.length; run += 1) {
        const gain = (image) => {
          const [before, after] = [scoreOf(image, 0, index), scoreOf(image, run, index)];
          return before === null || after === null ? null : after - before;
        };
        const title = `${score.label}: ${letters[run]} less ${letters[0]}`;
        found.push({ key: `gain-${index}-${run}`, title, score: index, orders: ["Largest loss first", "Largest gain first"], of: gain });
      }
    });
    runs.forEach((_, run) => {
      const title = several ? `Caption length of ${letters[run]}, in words` : "Caption length in words";
      const length = (image) => (said(image, run) === null ? null : words(said(image, run)[SAID.caption]));
      found.push({ key: `length-${run}`, title, orders: ["Shortest first", "Longest first"], of: length });
    });
    found.push({ key: "id", title: "Image id", orders: ["Lowest first", "Highest first"], of: (image) => image[IMAGE.id] });
    found.push({ key: "file", title: "File name", orders: ["A to Z", "Z to A"], of: (image) => image[IMAGE.file] || null, text: true });
    return found;
  }

  const sorting = sortings();
  const preferred = Math.max(0, data.perImage.findIndex((score) => score.name === "cider"));
  const state = { sort: sorting.find((one) => one.key === `score-${preferred}-0`) ?? sorting[0], down: false, text: "", low: null, high: null, below: null, differ: false };
  Object.assign(state, { page: 0, perPage: 48, chosen: [] });
  let haystacks = null;

  const folded = (text) => text.normalize("NFKC").toLowerCase();

  function choose() {
    const wanted = folded(state.text).split(/\s+/).filter(Boolean);
    if (wanted.length && haystacks === null) {
      haystacks = data.images.map((image) => folded([image[IMAGE.id], image[IMAGE.file], ...captions(image), ...image[IMAGE.references]].join("\n")));
    }
    const { of, text } = state.sort;
    const found = [];
    data.images.forEach((image, row) => {
      if (wanted.some((word) => !haystacks[row].includes(word))) return;
      if (state.differ && new Set(captions(image)).size < 2) return;
      const value = of(image);
      if (state.low !== null && !(value !== null && value >= state.low)) return;
      if (state.high !== null && !(value !== null && value <= state.high)) return;
      if (state.below !== null && !(value !== null && value < state.below)) return;
      found.push({ row, value });
    });
    const way = state.down ? -1 : 1;
    const compare = text ? new Intl.Collator("en", { numeric: true }).compare : (a, b) => a - b;
    found.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null);
      return way * compare(a.value, b.value);
    });
    state.chosen = found;
  }

  // ---- Gallery: pictures, taken out of their blocks when they come near

  const blocks = new Map();

  function picture(row) {
    const number = Math.floor(row / data.picturesPerBlock);
    if (!blocks.has(number)) {
      const element = find(`pictures-${number}`);
      blocks.set(number, element.textContent.split("\n"));
      element.remove(); // its text would be in memory twice
    }
    return blocks.get(number)[row % data.picturesPerBlock];
  }

  const near = new IntersectionObserver(
    (entries) => {
      for (const { isIntersecting, target } of entries) {
        if (!isIntersecting) continue;
        near.unobserve(target);
        const image = data.images[target.dataset.row];
        const found = picture(Number(target.dataset.row));
        if (found.startsWith("/9j/")) {
          const about = image[IMAGE.references][0] ?? captions(image)[0];
          target.append(make("img", { alt: about, src: `data:image/jpeg;base64,${found}`, decoding: "async" }));
        } else {
          target.append(make("span", { class: "none" }, found === "damaged" ? "The picture is damaged." : "The picture was not found."));
        }
      }
    },
    { rootMargin: "500px 0px" },
  );

  // ---- Gallery: cards

  function marked(element, text) {
    const lower = text.toLowerCase();
    const wanted = state.text.toLowerCase().split(/\s+/).filter(Boolean);
    let at = 0;
    while (wanted.length && lower.length === text.length && at < text.length) {
      const hits = wanted.map((word) => [lower.indexOf(word, at), word.length]).filter(([start]) => start >= 0);
      if (!hits.length) break;
      const [start, length] = hits.reduce((first, hit) => (hit[0] < first[0] ? hit : first));
      element.append(text.slice(at, start), make("mark", {}, text.slice(start, start + length)));
      at = start + length;
    }
    element.append(text.slice(at));
    return element;
  }

  function captionBlock(image, run, score) {
    const own = said(image, run);
    if (own === null) return make("div", {}, make("p", {}, chip(run), " ", make("span", { class: "quiet" }, "This run has not captioned it.")));
    const text = own[SAID.caption] || "(an empty caption)";
    const line = make("p", { class: "caption-text" }, several ? chip(run) : null, several ? spoken(`${letters[run]}: `) : null, several ? " " : null);
    line.append(marked(foreign("bdi", {}, ""), text));
    const meta = make("p", { class: "meta" });
    const value = score === undefined ? null : own[SAID.scores][score];
    if (value !== null) meta.append(`${data.perImage[score].label} ${value.toFixed(3)}`);
    const before = run && value !== null ? scoreOf(image, 0, score) : null;
    if (before !== null) {
      const gain = value - before;
      const way = gain > 0 ? " up" : gain < 0 ? " down" : "";
      meta.append(" ", make("span", { class: `gain${way}` }, `(${signed(gain)})`));
    }
    return make("div", {}, line, meta);
  }

  function details(image) {
    const parts = [make("h4", {}, "What people wrote")];
    const references = image[IMAGE.references];
    if (references.length) parts.push(make("ul", {}, ...references.map((text) => marked(foreign("li", {}, ""), text))));
    else parts.push(make("p", { class: "quiet small" }, "Nothing is known."));
    if (data.perImage.length) {
      const heads = runs.map((_, run) => make("th", { scope: "col", class: "number" }, several ? chip(run) : "Score", several ? spoken(letters[run]) : ""));
      const body = data.perImage.map((score, index) => {
        const cells = runs.map((_, run) => scoreOf(image, run, index));
        return make("tr", {}, make("th", { scope: "row" }, score.label), ...cells.map((value) => make("td", { class: "number" }, value === null ? "\u2013" : value.toFixed(3))));
      });
      parts.push(make("h4", {}, "Scores of this image"), make("table", {}, make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...body)));
    }
    runs.forEach((_, run) => {
      const alternatives = said(image, run)?.[SAID.alternatives] ?? [];
      if (!alternatives.length) return;
      const rows = alternatives.map(([text, score]) => make("tr", {}, marked(foreign("td", {}, ""), text), make("td", { class: "number" }, score.toFixed(2).replace("-", "\u2212"))));
      const heads = make("tr", {}, make("th", { scope: "col" }, "Caption"), make("th", { scope: "col", class: "number", title: "In nats, over the length penalty where there is one" }, "log-probability"));
      parts.push(make("h4", {}, several ? chip(run) : "", several ? " " : "", "Alternatives"), make("table", {}, make("thead", {}, heads), make("tbody", {}, ...rows)));
    });
    return parts;
  }

  function card(row) {
    const image = data.images[row];
    const more = make("details", {}, make("summary", {}, "References, scores, alternatives"));
    more.addEventListener("toggle", () => more.childElementCount === 1 && more.append(...details(image)));
    const score = state.sort.score ?? (data.perImage.length ? preferred : undefined);
    const name = marked(foreign("h3", { class: "meta" }, ""), image[IMAGE.file] || `Image ${image[IMAGE.id]}`);
    if (image[IMAGE.file]) name.append(` \u00b7 ${image[IMAGE.id]}`);
    const body = make("div", { class: "body" }, name, make("div", { class: "said" }, ...runs.map((_, run) => captionBlock(image, run, score))), more);
    const item = make("li", { class: "card" });
    if (data.picturesPerBlock) {
      const frame = make("div", { class: "picture", "data-row": row });
      near.observe(frame);
      item.append(frame);
    }
    item.append(body);
    return item;
  }

  // ---- Gallery: controls

  const fields = {};

  function field(id, title, control, wide = false) {
    control.id = id;
    fields[id] = control;
    return make("div", { class: wide ? "field wide" : "field" }, make("label", { for: id }, title), control);
  }

  const option = (value, title) => make("option", { value }, title);
  const number = (text) => (text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text));

  function buildControls() {
    const changed = (change) => (event) => {
      change(event.target);
      refresh(0);
    };
    const resort = (target) => {
      state.sort = sorting.find((one) => one.key === target.value);
      Object.assign(state, { low: null, high: null, below: null });
    };
    const bounds = () => Object.assign(state, { low: number(fields.low.value), high: number(fields.high.value), below: null });
    const bound = (id, title) => {
      fields[id] = make("input", { id, type: "number", step: "any", "aria-label": title, oninput: changed(bounds) });
      return fields[id];
    };
    const range = make("fieldset", { class: "field" }, make("legend", { id: "range-title" }), make("div", { class: "range" }, bound("low", "Lowest value"), "to", bound("high", "Highest value")));
    fields.range = range;
    const search = make("input", { type: "search", autocomplete: "off", spellcheck: "false", oninput: changed((target) => (state.text = target.value)) });
    const sort = make("select", { onchange: changed(resort) }, ...sorting.map((one) => option(one.key, one.title)));
    const order = make("select", { onchange: changed((target) => (state.down = target.value === "down")) }, option("up", ""), option("down", ""));
    const perPage = make("select", { onchange: changed((target) => (state.perPage = Number(target.value))) }, ...[24, 48, 96, 192].map((count) => option(count, String(count))));
    const parts = [
      field("search", "Find in captions, references and file names", search, true),
      field("sort", "Sort by", sort),
      field("order", "Order", order),
      range,
      field("per-page", "Images a page", perPage),
    ];
    if (several) {
      fields.differ = make("input", { type: "checkbox", id: "differ", onchange: changed((target) => (state.differ = target.checked)) });
      parts.push(make("label", { class: "check" }, fields.differ, "Only where captions differ"));
    }
    fields.clear = make("button", { type: "button", onclick: clear }, "Clear filters");
    find("controls").append(...parts, fields.clear);
    find("cards").classList.toggle("several", several);
    if (several) find("status").before(make("ul", { class: "legend" }, ...runs.map((_, run) => make("li", {}, runName(run)))));
    for (const place of ["top", "bottom"]) buildPager(place);
  }

  function clear() {
    Object.assign(state, { text: "", low: null, high: null, below: null, differ: false });
    refresh(0);
    fields.search.focus();
  }

  function showRange(key, low, below) {
    state.sort = sorting.find((one) => one.key === key);
    Object.assign(state, { text: "", low, high: null, below, differ: false, down: false });
    refresh(0);
    toGallery();
  }

  function toGallery() {
    find("gallery").scrollIntoView();
    find("gallery").focus({ preventScroll: true });
  }

  const pagers = [];

  function buildPager(place) {
    const go = (page) => () => {
      refresh(page());
      if (place === "bottom") toGallery();
    };
    const typed = (event) => go(() => (number(event.target.value) ?? 1) - 1)();
    const pager = {
      first: make("button", { type: "button", onclick: go(() => 0) }, "First"),
      previous: make("button", { type: "button", onclick: go(() => state.page - 1) }, "Previous"),
      at: make("input", { type: "number", min: 1, step: 1, "aria-label": "Page", onchange: typed }),
      of: make("span", {}),
      next: make("button", { type: "button", onclick: go(() => state.page + 1) }, "Next"),
      last: make("button", { type: "button", onclick: go(() => Infinity) }, "Last"),
    };
    pagers.push(pager);
    find(`pager-${place}`).append(make("nav", { class: "pager", "aria-label": `Pages of the gallery, ${place}` }, pager.first, pager.previous, pager.at, pager.of, pager.next, pager.last));
  }

  function refresh(page) {
    choose();
    const count = state.chosen.length;
    const pages = Math.max(1, Math.ceil(count / state.perPage));
    state.page = Math.max(0, Math.min(pages - 1, Math.round(page)));
    const start = state.page * state.perPage;
    const shown = state.chosen.slice(start, start + state.perPage);
    near.disconnect();
    find("cards").replaceChildren(...shown.map(({ row }) => card(row)));
    showState(count, pages, start, shown.length);
  }

  function showState(count, pages, start, shown) {
    const filtered = state.text.trim() !== "" || state.differ || [state.low, state.high, state.below].some((bound) => bound !== null);
    const order = state.sort.orders[state.down ? 1 : 0];
    const all = images(data.images.length);
    const matching = filtered ? `${whole.format(count)} of ${all} ${count === 1 ? "matches" : "match"}` : all;
    const range = `${whole.format(start + 1)} to ${whole.format(start + shown)} shown, by ${state.sort.title}, ${order.charAt(0).toLowerCase()}${order.slice(1)}`;
    find("status").textContent = count ? `${matching}; ${range}.` : `None of ${all} matches. Change or clear the filters.`;
    const write = (control, text) => {
      if (control !== document.activeElement) control.value = text;
    };
    write(fields.search, state.text);
    fields.sort.value = state.sort.key;
    fields.order.value = state.down ? "down" : "up";
    [...fields.order.options].forEach((one, index) => (one.textContent = state.sort.orders[index]));
    fields["per-page"].value = String(state.perPage);
    write(fields.low, state.low ?? "");
    write(fields.high, state.high ?? state.below ?? "");
    fields.range.disabled = state.sort.text === true;
    find("range-title").textContent = state.sort.text ? "Range" : state.sort.title;
    if (several) fields.differ.checked = state.differ;
    fields.clear.disabled = !filtered && document.activeElement !== fields.clear;
    for (const pager of pagers) {
      // A control that has the focus is not disabled under it: the focus would be lost.
      const off = (button, no) => button.setAttribute("aria-disabled", String(no));
      off(pager.first, state.page === 0);
      off(pager.previous, state.page === 0);
      off(pager.next, state.page === pages - 1);
      off(pager.last, state.page === pages - 1);
      pager.at.value = state.page + 1;
      pager.at.max = pages;
      pager.of.textContent = `of ${whole.format(pages)}`;
    }
  }

  // ---- How it was made

  function showSettings() {
    const place = find("settings");
    const bodies = [];
    data.settings.forEach(({ title, rows, missing }) => {
      place.append(make("h3", {}, title));
      if (missing.length) {
        const what = title === "Training" ? "No config of a training is known" : "The score file does not say how it came about";
        place.append(make("p", { class: "note" }, several ? `${what}: ${missing.join(", ")}.` : `${what}.`));
      }
      if (!rows.length) return;
      const body = make("tbody");
      for (const [key, cells] of rows) {
        const differs = new Set(cells).size > 1;
        const name = make("th", { scope: "row" }, differs ? make("span", { "aria-hidden": "true" }, "\u2260 ") : null, key, differs ? spoken(" (differs)") : null);
        body.append(make("tr", { class: differs ? "differs" : null }, name, ...cells.map((cell) => foreign("td", {}, cell ?? "\u2013"))));
      }
      bodies.push(body);
      const head = make("thead", {}, make("tr", {}, make("th", { scope: "col" }, "Setting"), ...runs.map((_, run) => make("th", { scope: "col" }, several ? runName(run) : "Value"))));
      place.append(scrolling(title, make("table", { class: "settings" }, head, body)));
    });
    if (!several || !bodies.length) return;
    const only = (event) => {
      for (const row of bodies.flatMap((body) => [...body.rows])) row.hidden = event.target.checked && !row.classList.contains("differs");
    };
    place.prepend(make("label", { class: "check" }, make("input", { type: "checkbox", id: "only-differences", onchange: only }), "Only what differs"));
  }

  showSummary();
  showScores();
  showDifferences();
  showCurves();
  showSettings();
  buildControls();
  showHistograms();
  refresh(0);
})();
