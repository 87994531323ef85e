// Lets the search of the site run from file://, where browsers start no worker: the worker's script runs in a hidden
// frame of the page instead. On a server nothing changes.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.onmessage = null;
      this.frame = Object.assign(document.createElement("iframe"), { hidden: true, srcdoc: "<!doctype html><body>" });
      this.started = new Promise((resolve) => {
        this.frame.onload = () => resolve(this.start(String(new URL(url, location.href))));
      });
      document.documentElement.append(this.frame);
    }
    // What the script of a worker expects of its surroundings, then the script.
    start(url) {
      const inside = this.frame.contentWindow;
      const load = (src) =>
        new Promise((onload, onerror) => {
          const script = inside.document.createElement("script");
          inside.document.body.append(Object.assign(script, { src, onload, onerror }));
        });
      inside.importScripts = (...urls) => urls.reduce((last, next) => last.then(() => load(next)), Promise.resolve());
      inside.postMessage = (data) => {
        const message = new MessageEvent("message", { data });
        this.dispatchEvent(message);
        if (this.onmessage) this.onmessage(message);
      };
      return inside.importScripts(url);
    }
    postMessage(data) {
      this.started.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
    terminate() {
      this.frame.remove();
    }
  };
}
