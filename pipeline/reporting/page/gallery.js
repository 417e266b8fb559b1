// The gallery's content: which images in which order, and their cards.
const resultOf = (image, run) => image[IMAGE.results][run];
const scoreOf = (image, run, index) => resultOf(image, run)?.[RESULT.scores][index] ?? null;
const wordsOf = runs.map(({ language }) => {
  if (!language || language.startsWith("en")) return (text) => (text.trim() ? text.trim().split(/\s+/).length : 0);
  const segmenter = new Intl.Segmenter(language.split("-")[0], { granularity: "word" });
  return (text) => [...segmenter.segment(text)].filter((one) => one.isWordLike).length;
});
const captions = (image) => image[IMAGE.results].filter((own) => own !== null).map((own) => own[RESULT.caption]);

function sortings() {
  const found = [];
  data.perImage.forEach((score, index) => {
    const orders = ["Worst first", "Best first"];
    runs.forEach((_, run) => {
      const title = comparing ? `${score.label} of ${letters[run]}` : score.label;
      found.push({ key: `score-${index}-${run}`, title, score: index, orders, of: (image) => scoreOf(image, run, index) });
    });
    for (let run = 1; run < runs.length; run += 1) {
      const gain = (image) => {
        const [before, after] = [scoreOf(image, 0, index), scoreOf(image, run, index)];
        return before === null || after === null ? null : after - before;
      };
      const title = `${score.label}: ${letters[run]} minus ${letters[0]}`;
      found.push({ key: `gain-${index}-${run}`, title, score: index, orders: ["Largest loss first", "Largest gain first"], of: gain });
    }
  });
  runs.forEach((_, run) => {
    const title = comparing ? `Caption length of ${letters[run]}, in words` : "Caption length in words";
    const length = (image) => (resultOf(image, run) === null ? null : wordsOf[run](resultOf(image, run)[RESULT.caption]));
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
let searchTexts = null;

const normalized = (text) => text.normalize("NFKC").toLowerCase();

function choose() {
  const terms = normalized(state.text).split(/\s+/).filter(Boolean);
  if (terms.length && searchTexts === null) {
    searchTexts = data.images.map((image) => normalized([image[IMAGE.id], image[IMAGE.file], ...captions(image), ...image[IMAGE.references]].join("\n")));
  }
  const { of, text } = state.sort;
  const found = [];
  data.images.forEach((image, row) => {
    if (terms.some((word) => !searchTexts[row].includes(word))) return;
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

// Thumbnails, taken out of their blocks when they come into view

const blocks = new Map();

function thumbnail(row) {
  const number = Math.floor(row / data.thumbnailsPerBlock);
  if (!blocks.has(number)) {
    const element = find(`thumbnails-${number}`);
    blocks.set(number, element.textContent.split("\n"));
    element.remove(); // or its text would be in memory twice
  }
  return blocks.get(number)[row % data.thumbnailsPerBlock];
}

const imageLoader = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      imageLoader.unobserve(target);
      const image = data.images[target.dataset.row];
      const found = thumbnail(Number(target.dataset.row));
      if (found.startsWith("/9j/")) {
        const about = image[IMAGE.references][0] ?? captions(image)[0];
        target.append(make("img", { alt: about, lang: data.language || null, src: `data:image/jpeg;base64,${found}`, decoding: "async" }));
      } else {
        target.append(make("span", { class: "none" }, found === "damaged" ? "The image is damaged." : "The image was not found."));
      }
    }
  },
  { rootMargin: "500px 0px" },
);

function marked(element, text) {
  const lower = text.toLowerCase();
  const terms = state.text.toLowerCase().split(/\s+/).filter(Boolean);
  let at = 0;
  while (terms.length && lower.length === text.length && at < text.length) {
    const hits = terms.map((word) => [lower.indexOf(word, at), word.length]).filter(([start]) => start >= 0);
    if (!hits.length) break;
    const [start, length] = hits.reduce((first, hit) => (hit[0] < first[0] ? hit : first));
    element.append(text.slice(at, start), make("mark", {}, text.slice(start, start + length)));
    at = start + length;
  }
  element.append(text.slice(at));
  return element;
}

function captionBlock(image, run, score) {
  const own = resultOf(image, run);
  if (own === null) return make("div", {}, make("p", {}, chip(run), " ", make("span", { class: "quiet" }, "Not captioned by this run.")));
  const text = own[RESULT.caption] || "(empty caption)";
  const line = make("p", { class: "caption-text" }, comparing ? chip(run) : null, comparing ? hiddenText(`${letters[run]}: `) : null, comparing ? " " : null);
  line.append(marked(captionText("bdi", run, ""), text));
  const meta = make("p", { class: "meta" });
  const value = score === undefined ? null : own[RESULT.scores][score];
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
  const parts = [make("h4", {}, "References")];
  const references = image[IMAGE.references];
  if (references.length) parts.push(make("ul", {}, ...references.map((text) => marked(referenceText("li", ""), text))));
  else parts.push(make("p", { class: "quiet small" }, "No references."));
  if (data.perImage.length) {
    const heads = runs.map((_, run) => make("th", { scope: "col", class: "number" }, comparing ? chip(run) : "Score", comparing ? hiddenText(letters[run]) : ""));
    const body = data.perImage.map((score, index) => {
      const cells = runs.map((_, run) => scoreOf(image, run, index));
      return make("tr", {}, make("th", { scope: "row" }, score.label), ...cells.map((value) => make("td", { class: "number" }, value === null ? "\u2013" : value.toFixed(3))));
    });
    parts.push(make("h4", {}, "Scores of this image"), make("table", {}, make("thead", {}, make("tr", {}, make("td"), ...heads)), make("tbody", {}, ...body)));
  }
  runs.forEach((_, run) => {
    const alternatives = resultOf(image, run)?.[RESULT.alternatives] ?? [];
    if (!alternatives.length) return;
    const rows = alternatives.map(([text, score]) => make("tr", {}, marked(captionText("td", run, ""), text), make("td", { class: "number" }, score.toFixed(2).replace("-", "\u2212"))));
    const heads = make("tr", {}, make("th", { scope: "col" }, "Caption"), make("th", { scope: "col", class: "number", title: "In nats, divided by the length penalty if there is one" }, "log-probability"));
    parts.push(make("h4", {}, comparing ? chip(run) : "", comparing ? " " : "", "Alternatives"), make("table", {}, make("thead", {}, heads), make("tbody", {}, ...rows)));
  });
  return parts;
}

function card(row) {
  const image = data.images[row];
  const more = make("details", {}, make("summary", {}, "References, scores, alternatives"));
  more.addEventListener("toggle", () => more.childElementCount === 1 && more.append(...details(image)));
  const score = state.sort.score ?? (data.perImage.length ? preferred : undefined);
  const name = marked(userText("h3", { class: "meta" }, ""), image[IMAGE.file] || `Image ${image[IMAGE.id]}`);
  if (image[IMAGE.file]) name.append(` \u00b7 ${image[IMAGE.id]}`);
  const body = make("div", { class: "body" }, name, make("div", { class: "results" }, ...runs.map((_, run) => captionBlock(image, run, score))), more);
  const item = make("li", { class: "card" });
  if (data.thumbnailsPerBlock) {
    const frame = make("div", { class: "picture", "data-row": row });
    imageLoader.observe(frame);
    item.append(frame);
  }
  item.append(body);
  return item;
}
