// One image in detail: whole, with its captions, labels and near-duplicates.

import { ask, thumbnail, whyUnreadable, wholeImage } from "./api.js";
import { CROSS, LEFT, RIGHT, captioned, copyJson, debounced, element, icon, languageName, named, plural, say, score, visible } from "./dom.js";

/** The dialog of the page. */
export class Details {
  /**
   * @param {HTMLDialogElement} dialog
   * @param {object} page its `close()`, `step(by)`, `similar(hit)`, `openRow(row, like)`, `labels(text)`.
   */
  constructor(dialog, page) {
    this.dialog = dialog;
    this.page = page;
    this.shown = null;
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      page.close();
    });
    dialog.addEventListener("click", (event) => event.target === dialog && page.close());
    dialog.addEventListener("keydown", (event) => this.keydown(event));
  }

  get isOpen() {
    return this.dialog.open;
  }

  /**
   * Show an image.
   *
   * @param {object} subject `hit` (of a row: its key may be unknown, null) or `upload` (a Blob, its `url` and `name`);
   *   `model` and, where there are several, `modelName` and `caches`; `position`, e.g. "3 of 40"; `labels`.
   */
  show(subject) {
    const { hit, upload, modelName, position, labels, caches } = subject;
    const same = this.isOpen && this.shown?.hit === hit && this.shown?.upload === upload;
    this.shown = subject;
    if (same) {
      if (position) this.dialog.querySelector("h2").textContent = position;
      return;
    }
    const button = (label, attributes, shape) => element("button", { type: "button", class: "quiet", "aria-label": label, title: label, ...attributes }, icon(shape));
    const bar = element("div", { class: "bar" },
      element("h2", { id: "details-title" }, upload ? "Your image" : position || "Image"),
      hit && position ? button("previous image", { click: () => this.page.step(-1) }, LEFT) : null,
      hit && position ? button("next image", { click: () => this.page.step(1) }, RIGHT) : null,
      button("close", { click: () => this.page.close() }, CROSS),
    );
    const facts = element("div", { class: "facts", tabindex: "-1" }, bar);
    if (upload) facts.append(element("p", { class: "key" }, named(upload.name)));
    else {
      const cache = caches?.[hit.cache]; // keys of several caches may be equal
      if (hit.key !== null) facts.append(element("p", { class: "key" }, named(hit.key), cache ? " in " : "", cache ? named(cache.name) : ""));
      if (hit.score !== null) {
        facts.append(element("p", { class: "score" }, "score ", element("b", {}, score(hit.score)), modelName ? " by " : "", modelName ? named(modelName) : ""));
      }
      if (hit.captions.length) facts.append(this.captions(hit.captions));
      facts.append(this.actions(hit));
    }
    facts.append(this.labelling(labels));
    if (hit?.alike.length) facts.append(this.alike(hit));
    this.dialog.replaceChildren(this.picture(hit, upload), facts);
    if (!this.isOpen) this.dialog.showModal();
    facts.focus({ preventScroll: true });
    this.dialog.scrollTop = 0; // on a phone the image comes first, and its buttons below took the focus
    this.classify();
  }

  picture(hit, upload) {
    const source = upload ? upload.url : wholeImage(hit.row);
    const image = element("img", { src: source, alt: hit?.captions[0]?.text ?? "" });
    const figure = element("figure", {}, image);
    image.addEventListener("error", async () => {
      const why = upload ? { key: upload.name, reason: "the browser cannot show it; the server may read it" } : await whyUnreadable(source);
      if (!why) return;
      figure.replaceChildren(element("p", { class: "unreadable" }, element("b", {}, named(why.key ?? hit?.key ?? "")), element("span", { dir: "auto" }, why.reason)));
    });
    return figure;
  }

  captions(captions) {
    return element("ul", { class: "captions", role: "list", "aria-label": "captions" }, ...captions.map((caption) =>
      element("li", {}, captioned("p", caption), caption.language ? element("small", { title: visible(caption.language) }, languageName(caption.language)) : null)));
  }

  actions(hit) {
    const copy = element("button", { type: "button", click: () => copyJson(hit, copy) }, "Copy as JSON");
    return element("p", { class: "actions" }, element("button", { type: "button", class: "main", click: () => this.page.similar(hit) }, "More like this"), copy);
  }

  alike(hit) {
    const strip = hit.alike.map((row) => {
      const tile = element("button", { type: "button", "aria-label": `near-duplicate, row ${row}`, click: () => this.page.openRow(row, hit) });
      const image = element("img", { src: thumbnail(row, 72), alt: "", width: "72", height: "72", loading: "lazy" });
      image.addEventListener("error", () => image.replaceWith(element("span", { class: "unreadable" }, "unreadable")));
      tile.append(image);
      return tile;
    });
    return element("section", { class: "folded" }, element("h3", {}, plural(hit.alike.length, "near-duplicate")), element("div", { class: "strip" }, ...strip));
  }

  labelling(labels) {
    const classify = debounced(() => this.classify(), 200);
    this.field = element("input", {
      type: "text", dir: "auto", id: "labels", autocomplete: "off", spellcheck: "false", maxlength: "4000", placeholder: "cat, dog, a red car",
      input: () => (this.page.labels(this.field.value), classify()),
    });
    this.field.value = labels;
    this.bars = element("ul", { class: "bars", role: "list", "aria-label": "probabilities of the labels" });
    return element("section", { class: "labelling" }, element("label", { for: "labels" }, "Labels, with commas between them"), this.field, this.bars);
  }

  /** Ask for the probabilities of the labels and draw them. */
  async classify() {
    this.asking?.abort();
    const labels = [...new Set(this.field.value.split(/[,،、，]/).map((label) => label.trim()).filter(Boolean))].slice(0, 100);
    const { bars } = this;
    if (!labels.length) {
      bars.replaceChildren();
      return;
    }
    const asking = (this.asking = new AbortController());
    const { hit, upload, model } = this.shown;
    const query = new URLSearchParams(labels.map((label) => ["label", label]));
    query.set("model", model);
    try {
      const body = await ask(upload ? `labels?${query}` : `labels/${hit.row}?${query}`, { signal: asking.signal, image: upload?.blob });
      bars.replaceChildren(...body.labels.map(({ label, probability, cosine }) => {
        const share = element("i");
        share.style.width = `${100 * probability}%`;
        return element("li", { title: `cosine ${score(cosine)}` }, element("span", { dir: "auto" }, label), element("b", {}, percent(probability)), element("span", { class: "share", "aria-hidden": "true" }, share));
      }));
      const [best] = body.labels;
      say(`${best.label}: ${percent(best.probability)}`);
    } catch (error) {
      if (error.name !== "AbortError") bars.replaceChildren(element("li", { class: "notice", dir: "auto" }, error.message));
    }
  }

  close() {
    this.asking?.abort();
    this.shown = null;
    this.dialog.close();
    this.dialog.replaceChildren();
  }

  keydown(event) {
    if (event.target.closest("input, textarea") || event.metaKey || event.ctrlKey || event.altKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!by || !this.shown?.position) return;
    event.preventDefault();
    this.page.step(by);
  }
}

const percent = (share) => (share >= 0.9995 || share < 0.0005 ? `${Math.round(100 * share)} %` : `${(100 * share).toFixed(1)} %`);
