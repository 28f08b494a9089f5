// Pages that are opened as files may not start workers. There the search's worker runs in a hidden frame of the page.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(address) {
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      // Like those of a worker, messages are copies that arrive when the sender has finished.
      inside.postMessage = (sent) => {
        const data = structuredClone(sent);
        setTimeout(() => this.onmessage?.(new MessageEvent("message", { data })));
      };
      const script = inside.document.createElement("script");
      script.src = new URL(address, location.href).href;
      this.loaded = new Promise((resolve) => { script.onload = resolve; });
      script.onerror = (event) => this.onerror?.(event);
      inside.document.body.append(script);
    }
    postMessage(sent) {
      const data = structuredClone(sent);
      this.loaded.then(() => this.frame.contentWindow?.onmessage(new MessageEvent("message", { data })));
    }
    terminate() { this.frame.remove(); }
  };
}
