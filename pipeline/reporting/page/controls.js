// The gallery's controls: search, sorting, filters and pages.
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
    field("search", "Search captions, references and file names", search, true),
    field("sort", "Sort by", sort),
    field("order", "Order", order),
    range,
    field("per-page", "Images per page", perPage),
  ];
  if (comparing) {
    fields.differ = make("input", { type: "checkbox", id: "differ", onchange: changed((target) => (state.differ = target.checked)) });
    parts.push(make("label", { class: "check" }, fields.differ, "Only where captions differ"));
  }
  fields.clear = make("button", { type: "button", onclick: clear }, "Clear filters");
  find("controls").append(...parts, fields.clear);
  find("cards").classList.toggle("several", comparing);
  if (comparing) find("status").before(make("ul", { class: "legend" }, ...runs.map((_, run) => make("li", {}, runName(run)))));
  for (const position of ["top", "bottom"]) buildPager(position);
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

function buildPager(position) {
  const go = (page) => () => {
    refresh(page());
    if (position === "bottom") toGallery();
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
  find(`pager-${position}`).append(make("nav", { class: "pager", "aria-label": `Pages of the gallery, ${position}` }, pager.first, pager.previous, pager.at, pager.of, pager.next, pager.last));
}

function refresh(page) {
  choose();
  const count = state.chosen.length;
  const pages = Math.max(1, Math.ceil(count / state.perPage));
  state.page = Math.max(0, Math.min(pages - 1, Math.round(page)));
  const start = state.page * state.perPage;
  const shown = state.chosen.slice(start, start + state.perPage);
  imageLoader.disconnect();
  find("cards").replaceChildren(...shown.map(({ row }) => card(row)));
  showState(count, pages, start, shown.length);
}

function showState(count, pages, start, shown) {
  const filtered = state.text.trim() !== "" || state.differ || [state.low, state.high, state.below].some((bound) => bound !== null);
  const order = state.sort.orders[state.down ? 1 : 0];
  const all = images(data.images.length);
  const matching = filtered ? `${integers.format(count)} of ${all} ${count === 1 ? "matches" : "match"}` : all;
  const range = `${integers.format(start + 1)} to ${integers.format(start + shown)} shown, by ${state.sort.title}, ${order.charAt(0).toLowerCase()}${order.slice(1)}`;
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
  if (comparing) fields.differ.checked = state.differ;
  fields.clear.disabled = !filtered && document.activeElement !== fields.clear;
  for (const pager of pagers) {
    // A button with the focus is not disabled: the focus would be lost.
    const off = (button, no) => button.setAttribute("aria-disabled", String(no));
    off(pager.first, state.page === 0);
    off(pager.previous, state.page === 0);
    off(pager.next, state.page === pages - 1);
    off(pager.last, state.page === pages - 1);
    pager.at.value = state.page + 1;
    pager.at.max = pages;
    pager.of.textContent = `of ${integers.format(pages)}`;
  }
}
