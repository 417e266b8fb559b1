// The report's data, and functions that build elements. All text from outside comes from the JSON in #data and enters the page as text, never as markup.
const data = JSON.parse(document.getElementById("data").textContent);
const runs = data.runs;
const comparing = runs.length > 1;
const letters = "ABCDEFGH";
const integers = new Intl.NumberFormat("en");
const IMAGE = { id: 0, file: 1, references: 2, results: 3 };
const RESULT = { caption: 0, scores: 1, alternatives: 2 };

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

// Text from outside may run from right to left, or change the direction of what follows it, so it is isolated.
const userText = (name, attributes, text) => make(name, { dir: "auto", ...attributes }, text);
// Captions carry their language, which decides the fonts: Chinese, Japanese and Korean write some characters in their own ways.
const captionText = (name, run, text) => userText(name, { lang: runs[run]?.language || null }, text);
const referenceText = (name, text) => userText(name, { lang: data.language || null }, text);
const chip = (run) => make("span", { class: `chip run-${run}`, "aria-hidden": "true" }, letters[run]);
const hiddenText = (text) => make("span", { class: "hidden" }, text);
const runName = (run) => make("span", {}, chip(run), " ", userText("bdi", {}, runs[run].name));
const images = (count) => `${integers.format(count)} ${count === 1 ? "image" : "images"}`;
const signed = (value, digits = 3) => {
  const text = Math.abs(value).toFixed(digits);
  return Number(text) === 0 ? text : `${value < 0 ? "\u2212" : "+"}${text}`;
};
const plain = (value) => String(Number(value.toPrecision(4)));

function figure(score, value) {
  if (score.share && value >= 0 && value <= 1) return `${(100 * value).toFixed(1)}%`;
  return value.toFixed(score.descriptive ? 2 : 3);
}

function niceStep(span, count) {
  const rough = span / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
}

const rounded = (value) => Number(value.toPrecision(10));

function showSummary() {
  const names = runs.flatMap((_, run) => [run ? (run === runs.length - 1 ? " and " : ", ") : "", comparing ? runName(run) : userText("bdi", {}, runs[run].name)]);
  const where = data.split ? [" on the split ", userText("b", {}, data.split)] : [];
  find("summary").append(...names, ...where, `: ${images(data.images.length)}.`);
  document.title = `${runs.map((run) => run.name).join(", ")}: caption scores`;
  for (const note of data.notes) find("notes").append(userText("p", { class: "note" }, note));
  for (const note of new Set(runs.flatMap((run) => run.notes))) {
    const having = runs.map((_, run) => run).filter((run) => comparing && runs[run].notes.includes(note));
    const whose = having.flatMap((run) => [chip(run), hiddenText(`${runs[run].name}: `), " "]);
    find("notes").append(make("p", { class: "note" }, ...whose, userText("bdi", {}, note)));
  }
}
