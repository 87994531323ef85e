// The results of one model: a grid of images that grows as it is scrolled.

import { ask, thumbnail, whyUnreadable } from "./api.js";
import { COPY, copyJson, element, icon, named, number, plural, say, score, visible } from "./dom.js";

const KEPT_ANSWERS = 30; // of earlier queries: going back needs no request
const WIDTHS = { s: 112, m: 172, l: 260 }; // least width of an image in CSS pixels, as in style.css
const unreadable = new Map(); // row -> {key, reason}
const answers = new Map(); // key of a request -> {hits, next, num, tookMs}

function keep(key, answer) {
  answers.delete(key);
  answers.set(key, answer);
  if (answers.size > KEPT_ANSWERS) answers.delete(answers.keys().next().value);
}

/** Forget earlier answers: the server was restarted, perhaps with other caches. */
export const forgetAnswers = () => answers.clear();

/** One image of a grid. */
class Tile {
  constructor(hit) {
    this.row = hit.row;
    this.image = element("img", { alt: "", draggable: "true", decoding: "async" });
    this.frame = element("span", { class: "frame" }, this.image);
    this.score = element("span", { class: "score" });
    this.caption = element("span", { class: "caption", dir: "auto" });
    this.link = element("a", { tabindex: "-1" }, this.frame, element("span", { class: "under" }, this.score, this.caption));
    this.node = element("li", {}, this.link);
    this.image.addEventListener("error", () => this.explain());
  }

  show(hit, index, { href, side, caption, isEager }) {
    this.hit = hit;
    this.link.href = href;
    this.link.dataset.index = index;
    this.score.textContent = score(hit.score);
    if (this.caption.textContent !== caption.text) this.caption.textContent = caption.text;
    if (caption.language) this.caption.lang = caption.language;
    else this.caption.removeAttribute("lang");
    this.link.setAttribute("aria-label", `${caption.text || visible(hit.key)}, score ${score(hit.score)}`);
    this.link.title = visible(hit.key);
    const badge = this.frame.querySelector(".alike");
    if (hit.alike.length) {
      const text = `+${number(hit.alike.length)}`;
      if (badge) badge.textContent = text;
      else this.frame.append(element("span", { class: "alike", title: "near-duplicates folded under it" }, text));
    } else badge?.remove();
    const known = unreadable.get(hit.row);
    if (known) {
      this.showReason(known);
      return;
    }
    const source = thumbnail(hit.row, side);
    if (this.image.getAttribute("src") !== source) {
      this.image.loading = isEager ? "eager" : "lazy";
      this.image.width = this.image.height = 256;
      this.image.src = source;
    }
  }

  /** Take back the request of an image that is no longer wanted: others wait behind it. */
  cancel() {
    if (!this.image.complete) this.image.removeAttribute("src");
  }

  async explain() {
    if (!this.image.hasAttribute("src")) return;
    const reason = await whyUnreadable(this.image.src);
    if (!reason) return;
    if (reason.key !== null) unreadable.set(this.row, reason); // else it may come back
    this.showReason(reason);
    this.link.dispatchEvent(new CustomEvent("settled"));
  }

  showReason({ key, reason }) {
    if (!this.image.isConnected) return;
    this.image.replaceWith(
      element("span", { class: "unreadable" }, element("b", {}, named(key ?? this.hit.key)), element("span", { dir: "auto" }, reason)),
    );
  }
}

/** A column of the page. */
export class Column {
  /**
   * @param {{number: number, name: string}} model
   * @param {object} page its `state()`, `href(hit, model)`, `open(hit, column)`, `query(model)`, `drawn(column)`,
   *   `prompt(model, text, isCommitted)`, `suggestions()`, `tellNothing(column, num)`, `focusQuery()`.
   * @param {boolean} isAlone whether the page shows no other model.
   */
  constructor(model, page, isAlone) {
    this.model = model;
    this.page = page;
    this.isAlone = isAlone;
    this.request = null;
    this.answer = null; // that is shown
    this.shown = null; // its request; another one while an answer is waited for, or has failed
    this.tiles = new Map();
    this.loading = null; // an AbortController
    this.waiting = new Set(); // tiles on screen whose images are not there yet
    this.status = element("p", { class: "status" });
    this.notice = element("p", { class: "notice", hidden: true });
    this.grid = element("ul", { class: "grid", role: "list", "aria-label": `images that ${visible(model.name)} finds` });
    this.end = element("div", { class: "end" });
    this.prompt = isAlone ? null : this.promptField();
    const copying = { type: "button", hidden: true, title: "Copy as JSON", click: () => copyJson(this.asJson(), this.copy) };
    this.copy = isAlone
      ? element("button", copying, "Copy as JSON")
      : element("button", { ...copying, class: "quiet", "aria-label": "Copy as JSON" }, icon(COPY));
    const title = isAlone ? null : element("h2", {}, named(model.name));
    this.head = element("div", { class: "head" }, title, this.prompt, this.status, this.copy);
    this.node = element("section", { class: "column", "aria-label": visible(model.name) }, this.head, this.notice, this.grid, this.end);
    this.grid.addEventListener("click", (event) => this.click(event));
    this.grid.addEventListener("keydown", (event) => this.keydown(event));
    this.grid.addEventListener("focusin", (event) => this.focused(event.target.closest("a")));
    this.observer = new IntersectionObserver((seen) => seen.some((each) => each.isIntersecting) && this.reachedEnd(), {
      rootMargin: "800px",
    });
  }

  promptField() {
    const { number: index, name } = this.model;
    const field = element("input", {
      type: "search", dir: "auto", class: "prompt", autocomplete: "off", spellcheck: "false", maxlength: "2000",
      "aria-label": `another text for ${visible(name)}`,
      input: (event) => event.isComposing || this.page.prompt(index, field.value, false),
      change: () => this.page.prompt(index, field.value, true),
    });
    field.addEventListener("compositionend", () => this.page.prompt(index, field.value, false));
    return field;
  }

  /** The results, for a clipboard. */
  asJson() {
    const { hits, num, query } = this.answer;
    return { url: location.href, model: this.model.name, query, num_searched: num, hits };
  }

  remove() {
    this.loading?.abort();
    clearTimeout(this.later);
    this.observer.disconnect();
    this.node.remove();
  }

  /** Show the answer to a request, from memory or by asking; the images on screen stay until it is there. */
  async show(request, typedAt = null) {
    const { q, prompts, upload, similar } = this.page.state();
    if (this.prompt) {
      this.prompt.placeholder = q || "another text for this model";
      const text = prompts[this.model.number] ?? "";
      if (document.activeElement !== this.prompt) this.prompt.value = text;
      this.prompt.disabled = upload !== null || similar !== null;
    }
    if (request && request.key === this.shown?.key && !this.isAsking()) {
      this.request = request;
      this.draw();
      return;
    }
    this.loading?.abort();
    this.request = request;
    if (!request) {
      this.clear();
      return;
    }
    const known = answers.get(request.key);
    if (known) {
      this.take(request, known);
      return;
    }
    const loading = (this.loading = new AbortController());
    this.node.setAttribute("aria-busy", "true");
    try {
      const body = await ask(`${request.path}&limit=${this.firstPage()}&offset=0`, { signal: loading.signal, image: request.image });
      const query = this.page.query(this.model.number);
      this.take(request, { query, hits: body.hits, next: body.next_offset, num: body.num_searched, tookMs: body.took_ms });
      if (typedAt !== null) this.measure(typedAt);
      if (window.scrollY > this.node.offsetTop) window.scrollTo({ top: 0 });
    } catch (error) {
      if (error.name === "AbortError") return;
      this.fail(error, () => this.show(request));
    } finally {
      if (this.loading === loading) {
        this.loading = null;
        this.node.removeAttribute("aria-busy");
      }
    }
  }

  /** Whether an answer, or an image of it that was typed for, is waited for. */
  isBusy() {
    return this.loading !== null || this.waiting.size > 0;
  }

  /** Whether another query than the one shown is under way. */
  isAsking() {
    return this.loading !== null && this.request?.key !== this.shown?.key;
  }

  take(request, answer) {
    keep(request.key, answer);
    this.shown = request;
    this.answer = answer;
    this.draw();
  }

  clear() {
    this.answer = this.shown = null;
    this.waiting.clear();
    this.status.textContent = "";
    this.copy.hidden = this.notice.hidden = true;
    this.tiles.clear();
    this.grid.replaceChildren();
    this.end.replaceChildren();
    this.node.removeAttribute("aria-busy");
  }

  fail(error, again) {
    if (!this.answer || this.request?.image) this.clear(); // results of another image would pass for those of this one
    this.head.hidden = this.isAlone && !this.answer;
    const retry = element("button", { type: "button", click: () => (forgetAnswers(), again()) }, "Try again");
    this.notice.replaceChildren(element("span", { dir: "auto" }, error.message), error.status === 400 ? (this.answer ? "" : this.page.suggestions()) : retry);
    this.notice.classList.toggle("failed", error.status !== 400);
    this.notice.hidden = false;
    this.end.replaceChildren();
    say(error.message);
  }

  /** Images a screen holds, and a row more. */
  firstPage() {
    const { columns, pitch } = this.layout();
    const rows = Math.ceil((window.innerHeight - Math.min(this.node.offsetTop, 240)) / pitch) + 1;
    return Math.max(12, Math.min(100, columns * (this.isStacked() ? 2 : rows)));
  }

  layout() {
    const least = Math.min(WIDTHS[this.page.state().size], this.grid.clientWidth / 2 || Infinity);
    const columns = Math.max(1, Math.floor((this.grid.clientWidth + 12) / (least + 12)));
    const side = (this.grid.clientWidth + 12) / columns - 12;
    return { columns, side, pitch: side + 60 };
  }

  /** On a phone several models stand one below the other, and grow by a button. */
  isStacked() {
    return !this.isAlone && window.matchMedia("(max-width: 40rem)").matches;
  }

  draw() {
    const { hits, next, num, tookMs } = this.answer;
    const state = this.page.state();
    const { side, columns, pitch } = this.layout();
    const onScreen = columns * Math.ceil(window.innerHeight / pitch);
    const tiles = new Map();
    const nodes = hits.map((hit, index) => {
      const tile = this.tiles.get(hit.row) ?? new Tile(hit);
      tiles.set(hit.row, tile);
      tile.show(hit, index, {
        href: this.page.href(hit, this.model.number), side, caption: firstCaption(hit, state), isEager: index < onScreen,
      });
      return tile.node;
    });
    for (const [row, tile] of this.tiles) if (!tiles.has(row)) tile.cancel();
    this.tiles = tiles;
    this.place(nodes);
    if (nodes.length && !this.grid.querySelector('a[tabindex="0"]')) nodes[0].firstChild.tabIndex = 0;
    this.notice.hidden = true;
    const where = plural(num, "image");
    this.status.textContent = hits.length
      ? `best ${number(hits.length)} of ${where} · ${tookMs < 10 ? tookMs.toFixed(1) : Math.round(tookMs)} ms`
      : "";
    if (!hits.length) this.page.tellNothing(this, num);
    say(hits.length ? `The best ${number(hits.length)} of ${plural(num, "image")}` : "No image found");
    this.copy.hidden = !hits.length;
    this.head.hidden = this.isAlone && !hits.length;
    this.drawEnd(next);
    clearTimeout(this.later);
    this.later = setTimeout(() => this.watchEnd(), 250); // the images on screen come first
    this.page.drawn(this);
  }

  /** Put the images into the grid; those that stay in their places are not touched, and the focus stays with its image. */
  place(nodes) {
    const before = [...this.grid.children];
    if (before.every((node, i) => node === nodes[i])) {
      this.grid.append(...nodes.slice(before.length));
      return;
    }
    const focused = document.activeElement;
    this.grid.replaceChildren(...nodes);
    if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
  }

  drawEnd(next) {
    if (next === null || !this.answer.hits.length) this.end.replaceChildren();
    else this.end.replaceChildren(element("button", { type: "button", click: () => this.more() }, "Show more"));
  }

  reachedEnd() {
    if (!this.isStacked() && this.notice.hidden) this.more();
  }

  /** Fetch the next page and append it. */
  async more() {
    const { shown: request, answer } = this;
    if (!answer || request.key !== this.request?.key || answer.next === null || this.loading) return;
    const loading = (this.loading = new AbortController());
    try {
      const limit = Math.min(100, 2 * this.firstPage());
      const body = await ask(`${request.path}&limit=${limit}&offset=${answer.next}`, { signal: loading.signal, image: request.image });
      const seen = new Set(answer.hits.map((hit) => hit.row));
      answer.hits.push(...body.hits.filter((hit) => !seen.has(hit.row)));
      answer.next = body.next_offset;
      this.draw();
    } catch (error) {
      if (error.name !== "AbortError" && this.answer === answer) {
        const retry = element("button", { type: "button", click: () => this.more() }, "Try again");
        this.end.replaceChildren(element("span", {}, `${error.message} `), retry);
      }
      return;
    } finally {
      if (this.loading === loading) this.loading = null;
    }
    this.watchEnd(); // what was appended may not fill the window
  }

  /** Have the end of the grid tell whether it is near the window, even if it was before. */
  watchEnd() {
    this.observer.unobserve(this.end);
    this.observer.observe(this.end);
  }

  /** Measure the time from a key to the moment at which every image on screen is there. */
  measure(typedAt) {
    const { columns, pitch } = this.layout();
    const { model: { number: model }, shown: { key } } = this;
    const rows = Math.ceil((window.innerHeight - this.grid.getBoundingClientRect().top) / pitch);
    const waiting = (this.waiting = new Set());
    for (const tile of [...this.tiles.values()].slice(0, columns * rows)) {
      if (tile.image.isConnected && !tile.image.complete) waiting.add(tile);
    }
    const finish = () =>
      requestAnimationFrame(() => {
        if (this.shown?.key === key) performance.measure("typed-to-images", { start: typedAt, detail: { model, key } });
      });
    if (!waiting.size) finish();
    for (const tile of waiting) {
      const settle = () => waiting.delete(tile) && !waiting.size && finish();
      tile.image.addEventListener("load", settle, { once: true });
      tile.link.addEventListener("settled", settle, { once: true });
    }
  }

  click(event) {
    const link = event.target.closest("a");
    if (!link || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    this.page.open(this.answer.hits[Number(link.dataset.index)], this);
  }

  focused(link) {
    if (!link) return;
    for (const other of this.grid.querySelectorAll('a[tabindex="0"]')) other.tabIndex = -1;
    link.tabIndex = 0;
  }

  keydown(event) {
    const link = event.target.closest("a");
    if (!link || event.metaKey || event.ctrlKey || event.altKey || event.shiftKey) return;
    const index = Number(link.dataset.index);
    const columns = getComputedStyle(this.grid).gridTemplateColumns.split(" ").length;
    const last = this.answer.hits.length - 1;
    const target = { ArrowRight: index + 1, ArrowLeft: index - 1, ArrowDown: index + columns, ArrowUp: index - columns, Home: 0, End: last }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    if (target < 0) {
      if (event.key === "ArrowUp") this.page.focusQuery();
      return;
    }
    this.focusTile(Math.min(target, last));
  }

  /** Focus an image by its position. */
  focusTile(index) {
    const link = this.grid.children[index]?.firstChild;
    link?.focus({ preventScroll: true });
    link?.scrollIntoView({ block: "nearest" });
  }
}

/** The caption to show: the first that passes the filters. */
function firstCaption(hit, { text, language }) {
  const wanted = text.toLowerCase();
  const passes = (caption) =>
    (language === null || caption.language === language) && caption.text.toLowerCase().includes(wanted);
  return hit.captions.find(passes) ?? hit.captions[0] ?? { text: "", language: "" };
}

