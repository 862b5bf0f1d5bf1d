// The browser of questions: filters, pages, and pictures that are decoded only when they come into sight.
const browser = document.getElementById("browser");
if (browser) {
  const asked = JSON.parse(document.getElementById("asked").textContent);
  const PAGE = 24;
  const RIGHT = 0.5;
  const blocks = all("[data-pictures]", browser);
  const opened = new Map();
  const element = (id) => document.getElementById(id);
  const cards = element("cards");
  const buttons = all("[data-change]", browser);
  const state = { task: "", search: "", change: "all", page: 0, model: asked.model, against: asked.against };

  const right = (item, model) => item.s[model] >= RIGHT;
  const KINDS = {
    changed: (item) => right(item, state.model) !== right(item, state.against),
    all: () => true,
    gained: (item) => right(item, state.model) && !right(item, state.against),
    lost: (item) => !right(item, state.model) && right(item, state.against),
    wrong: (item) => !right(item, state.model),
    differ: (item) => item.a[state.model] !== item.a[state.against],
    unparsed: (item) => Boolean(item.u?.[state.model]),
  };
  const gain = (item) => item.s[state.model] - item.s[state.against];
  // Open on what changed; where nothing did, there is only all to show.
  if (asked.items.some(KINDS.changed)) state.change = "changed";
  for (const item of asked.items) item.text = [item.t, item.q, ...item.e, ...item.a].join("\n").toLowerCase();

  function make(tag, kind, text, ...children) {
    const made = document.createElement(tag);
    if (kind) made.className = kind;
    if (text) made.textContent = text;
    made.append(...children);
    return made;
  }

  function pictureOf(place) {
    const block = Math.floor(place / asked.block);
    if (!opened.has(block)) opened.set(block, JSON.parse(blocks[block].textContent));
    return opened.get(block)[place % asked.block];
  }

  function reveal(target) {
    const [source, width, height] = pictureOf(Number(target.dataset.picture));
    const image = make("img", Math.max(width, height) <= asked.tiny ? "pixels" : "");
    Object.assign(image, { src: source, width, height, alt: target.dataset.alt });
    const frame = make("div", "frame", "", image, ...target.boxes);
    frame.style.aspectRatio = `${width}/${height}`;
    frame.style.setProperty("--ratio", width / height);
    target.replaceChildren(frame);
  }

  const sight = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      sight.unobserve(target);
      reveal(target);
    }
  }, { rootMargin: "300px" });

  // On paper nothing comes into sight later.
  addEventListener("beforeprint", () => {
    for (const target of all("[data-picture]:empty", cards)) {
      sight.unobserve(target);
      reveal(target);
    }
  });

  function boxOf(name, kind, box) {
    const [left, top, right, bottom] = box.map((value) => 100 * value);
    const made = make("span", `box ${kind}`, "", make("span", "unheard", `box: ${name}`));
    Object.assign(made.style, {
      left: `${left}%`, top: `${top}%`, width: `${right - left}%`, height: `${bottom - top}%`,
    });
    return made;
  }

  function photo(item) {
    if (item.gone) return make("div", "photo missing", "picture not found or left out");
    if (item.p === undefined) return "";
    const made = make("div", "photo");
    made.dataset.picture = item.p;
    made.dataset.alt = `picture of the question: ${item.q}`;
    made.boxes = item.box ? [boxOf("expected", "expected", item.box)] : [];
    (item.boxes || []).forEach((box, model) => {
      if (box) made.boxes.push(boxOf(asked.models[model], asked.classes[model], box));
    });
    sight.observe(made);
    return made;
  }

  function answer(item, model) {
    const good = right(item, model);
    const mark = make("span", good ? "right" : "wrong", good ? "✓" : "✗");
    mark.setAttribute("role", "img");
    mark.setAttribute("aria-label", good ? "right" : "wrong");
    const said = make("span", "said", item.a[model]);
    if (!item.a[model]) said.append(make("i", "", "no answer"));
    if (item.s[model] > 0 && item.s[model] < 1) said.append(` (${item.s[model].toFixed(2)})`);
    if (item.u?.[model]) said.append(" ", make("i", "unread", "not readable"));
    return make("li", "", "", mark, make("span", `who ${asked.classes[model]}`, asked.models[model]), said);
  }

  function card(item) {
    const expected = make("p", "expected", "", make("span", "", "expected"), make("b", "", item.e.join(" / ")));
    const answers = make("ul", "", "", ...asked.models.map((name, model) => answer(item, model)));
    const task = make("p", "task", item.t);
    return make("article", "card", "", photo(item), task, make("p", "question", item.q), expected, answers);
  }

  function show() {
    const wanted = asked.items.filter((item) =>
      (!state.task || item.t === state.task) && (!state.search || item.text.includes(state.search)));
    for (const button of buttons) {
      const kind = button.dataset.change;
      button.querySelector("span").textContent = wanted.filter(KINDS[kind]).length;
      button.setAttribute("aria-pressed", String(kind === state.change));
    }
    const found = wanted.filter(KINDS[state.change]);
    // The worst comes first; all are shown in the order in which they were asked.
    if (state.change !== "all") found.sort((one, other) => gain(one) - gain(other));
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const shown = found.slice(state.page * PAGE, (state.page + 1) * PAGE);
    sight.disconnect();
    cards.replaceChildren(...shown.map(card));
    element("counted").textContent = `${found.length} of ${asked.items.length} questions`;
    element("page").textContent = `page ${state.page + 1} of ${pages}`;
    element("before").disabled = state.page === 0;
    element("after").disabled = state.page === pages - 1;
  }

  function change(update) {
    Object.assign(state, { page: 0 }, update);
    show();
  }

  const counts = new Map();
  for (const item of asked.items) counts.set(item.t, (counts.get(item.t) || 0) + 1);
  const tasks = element("by-task");
  tasks.append(new Option("all tasks", ""));
  for (const [name, times] of counts) tasks.append(new Option(`${name} (${times})`, name));
  tasks.addEventListener("change", () => change({ task: tasks.value }));
  for (const key of ["model", "against"]) {
    const menu = element(`by-${key}`);
    if (!menu) continue;
    menu.value = asked.models[state[key]];
    menu.addEventListener("change", () => change({ [key]: asked.models.indexOf(menu.value) }));
  }
  for (const button of buttons) {
    button.addEventListener("click", () => change({ change: button.dataset.change }));
  }
  element("search").addEventListener("input", (event) => change({ search: event.target.value.trim().toLowerCase() }));
  for (const [id, step] of [["before", -1], ["after", 1]]) {
    element(id).addEventListener("click", () => {
      change({ page: state.page + step });
      browser.scrollIntoView();
    });
  }
  show();
}
