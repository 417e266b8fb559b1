// The table of scores with their intervals, the differences between runs, and the histograms.
function intervalBar(run, [value, low, high], [least, most]) {
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
  if (comparing) {
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
      const bounds = make("span", { class: "quiet" }, hiddenText("95% interval "), `${low} to ${high}`);
      return row.append(make("td", {}, make("div", { class: "score" }, make("b", {}, value), bounds, intervalBar(run, cell, scale))));
    });
    body.append(row);
  });
  const head = make("tr", {}, make("td"), ...runs.map((_, run) => make("th", { scope: "col" }, comparing ? runName(run) : userText("bdi", {}, runs[run].name))));
  const scales = comparing ? "The bars in a row share a scale, which may not start at 0." : "Bars start at 0.";
  const about = `Each score with its 95% bootstrap interval over the images. ${scales} The rows below the line describe the captions: there, higher is not better.`;
  find("score-table").append(make("p", { class: "quiet small" }, about), scrolling("Scores", make("table", {}, make("thead", {}, head), body)));
}

const scrolling = (name, content) => make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, content);

function showDifferences() {
  if (!comparing) return;
  const container = find("differences");
  container.append(make("h3", {}, "Paired comparison on the same images"));
  data.differences.forEach((found, index) => {
    const run = index + 1;
    for (const one of found) {
      const [value, low, high] = one.change;
      const holdsZero = low <= 0 && high >= 0;
      const reading = holdsZero
        ? "The interval contains 0: these images do not show which run is better."
        : `The interval excludes 0: on images like these, ${letters[value > 0 ? run : 0]} scores higher. ` +
          "This says nothing about other seeds, other data or human preference.";
      container.append(
        make(
          "p",
          {},
          make("b", {}, `${one.label}, ${letters[run]} minus ${letters[0]}: ${signed(value)}`),
          ` (95% interval ${signed(low)} to ${signed(high)}; ${images(one.images)}: ${integers.format(one.higher)} higher, ` +
            `${integers.format(one.lower)} lower, ${integers.format(one.equal)} equal). ${reading}`,
        ),
      );
    }
    if (!found.length) container.append(make("p", {}, `${letters[run]} and ${letters[0]} have no per-image score in common, so they are not compared.`));
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
  const container = find("histograms");
  container.append(make("h3", {}, `${score.label} per image`), make("p", { class: "quiet small" }, "Click a bar to show its images in the gallery."));
  const grid = make("div", { class: "histograms" });
  counts.forEach((count, run) => {
    const bars = make("div", { class: `bars run-${run}`, role: "group", "aria-label": `${score.label} per image, ${runs[run].name}` });
    count.forEach((number, bin) => {
      const bar = make("span");
      bar.style.height = `${number ? Math.max(1, (100 * number) / tallest) : 0}%`;
      const text = `${plain(edges[bin])} to ${plain(edges[bin + 1])}: ${images(number)}`;
      const chosen = () => showRange(`score-${index}-${run}`, edges[bin], edges[bin + 1]);
      bars.append(make("button", { type: "button", "aria-label": text, title: text, onclick: chosen, disabled: number === 0 }, bar));
    });
    const ends = make("div", { class: "ticks", "aria-hidden": "true" }, make("span", {}, plain(edges[0])), make("span", {}, plain(edges.at(-1))));
    grid.append(make("div", {}, comparing ? make("p", { class: "small" }, runName(run)) : null, bars, ends));
  });
  container.append(grid);
}
