// Elements and formats. What users wrote (captions, keys, names) reaches the page as text nodes and attributes alone.

/** An element with attributes (functions are listeners, true is an empty attribute, null is none) and children. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** An icon of one path. */
export function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

export const CROSS = "M5 5l10 10M15 5 5 15";
export const COPY = "M7.5 7.5h9v9h-9zM4.5 12.5h-1v-9h9v1";
export const LEFT = "m12 4-6 6 6 6";
export const RIGHT = "m8 4 6 6-6 6";

/** A name of a file, a model or a cache: isolated from the direction of the text around it, its controls written out. */
export function named(text) {
  return element("bdi", {}, visible(text));
}

/** A caption: its own direction, and its language for the choice of a font. */
export function captioned(name, caption, attributes = {}) {
  return element(name, { dir: "auto", lang: caption.language || null, ...attributes }, caption.text);
}

// C0 and C1 controls, separators of lines, marks that change the direction, halves of a character.
const CONTROLS = /[\u0000-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;

/** A text on one line with its controls written out. */
export function visible(text) {
  return text.replace(CONTROLS, (found) => `\\u${found.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

export const number = (value) => value.toLocaleString("en");
export const plural = (value, one, many = `${one}s`) => `${number(value)} ${value === 1 ? one : many}`;
export const score = (value) => value.toFixed(3);

const languageNames = new Intl.DisplayNames(["en"], { type: "language", fallback: "code" });

/** The English name of a BCP 47 tag, or the tag. */
export function languageName(tag) {
  if (tag === "") return "not given";
  try {
    return languageNames.of(tag);
  } catch {
    return visible(tag);
  }
}

/** Call a function when its calls have paused for some milliseconds. */
export function debounced(call, pause) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...values), pause);
  };
}

const live = document.getElementById("said");
/** Tell a screen reader, once typing has paused. */
export const say = debounced((text) => {
  live.textContent = text;
}, 600);

/** Write a value as JSON into the clipboard; the button says whether that worked. */
export async function copyJson(value, button) {
  const text = JSON.stringify(value, null, 2);
  const label = [...button.childNodes];
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    done = copyBySelection(text, button); // without TLS there is no clipboard but on localhost
  }
  button.textContent = done ? "Copied" : "The browser refused";
  say(button.textContent);
  setTimeout(() => {
    button.replaceChildren(...label);
  }, 1500);
}

function copyBySelection(text, button) {
  const area = element("textarea", { class: "unseen", readonly: true });
  area.value = text;
  button.after(area); // inside the dialog, where there is one: nothing outside of it can be selected
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  button.focus();
  return done;
}
