// Pages opened as files may not start workers. There the search's worker runs in a frame of the page.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super();
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      // What a worker has: `postMessage` to the page, `importScripts`, and messages from the page.
      inside.postMessage = (data) => this.deliver(data);
      inside.importScripts = () => {};
      const script = inside.document.createElement("script");
      script.src = new URL(address, location.href).href;
      script.onload = () => { this.ready = true; this.waiting.splice(0).forEach((data) => this.hand(data)); };
      inside.document.body.append(script);
    }
    deliver(data) {
      const event = new MessageEvent("message", { data });
      this.onmessage?.(event);
      this.dispatchEvent(event);
    }
    hand(data) {
      const inside = this.frame.contentWindow;
      inside.dispatchEvent(new inside.MessageEvent("message", { data }));
    }
    postMessage(data) { this.ready ? this.hand(data) : this.waiting.push(data); }
    terminate() { this.frame.remove(); }
  };
}
