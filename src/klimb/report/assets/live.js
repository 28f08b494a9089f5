// Brings the page up to date when the server says that the run has changed. What the reader has opened, chosen and
// scrolled to stays.
(() => {
  const line = document.getElementById("live"), main = document.querySelector("main");
  let shown = line.dataset.state, wanted = shown, ended = false, busy = false;

  const keyed = (root) => [...root.querySelectorAll("details[data-key]")];
  // The part of the page that is at the top of the window, and where it is there.
  function anchor() {
    for (const part of main.querySelectorAll("h1, h2, h3")) {
      const { top } = part.getBoundingClientRect();
      if (top >= 0) return { tag: part.tagName, text: part.textContent, top };
    }
    return null;
  }
  function scrolledTo(place, before) {
    const same = (part) => part.tagName === place.tag && part.textContent === place.text;
    const part = place && [...main.querySelectorAll("h1, h2, h3")].find(same);
    scrollTo({ top: part ? scrollY + part.getBoundingClientRect().top - place.top : before, behavior: "instant" });
  }
  function replace(page) {
    for (const part of page.querySelectorAll("noscript")) part.remove(); // the parser takes what is inside for shown
    const place = scrollY > 0 ? anchor() : null, before = scrollY, kept = report.state();
    const open = new Set(keyed(main).filter((part) => part.open).map((part) => part.dataset.key));
    const rows = [...main.querySelectorAll(".scroll")].map((part) => part.scrollTop);
    report.stop();
    document.title = page.title;
    document.getElementById("data").textContent = page.getElementById("data").textContent;
    main.replaceChildren(...[...page.querySelector("main").childNodes].map((node) => document.adoptNode(node)));
    for (const part of keyed(main)) part.open = open.has(part.dataset.key);
    report = drawReport(kept);
    main.querySelectorAll(".scroll").forEach((part, i) => { part.scrollTop = rows[i] || 0; });
    scrolledTo(place, before);
    shown = page.getElementById("live").dataset.state;
  }
  function say() {
    line.dataset.state = shown;
    if (ended && shown === wanted) line.textContent = "the run has ended: this is its last state";
    else line.textContent = `live, as of ${new Date().toLocaleTimeString()}`;
  }
  async function update() {
    if (busy) return;
    busy = true;
    try {
      // Once per message: a run that changes while its page is made has another state by then, and says so.
      while (shown !== wanted) {
        const asked = wanted;
        const answer = await fetch("/", { cache: "no-store" });
        replace(new DOMParser().parseFromString(await answer.text(), "text/html"));
        if (wanted === asked) wanted = shown;
      }
      say();
    } catch {
      line.textContent = "the command has ended, or can't be reached";
    } finally {
      busy = false;
    }
  }
  const events = new EventSource("events");
  events.onmessage = (event) => {
    const message = JSON.parse(event.data);
    wanted = message.state;
    ended = message.ended;
    update();
  };
  events.onerror = () => {
    if (ended) events.close();
    else line.textContent = "the command has ended, or can't be reached";
  };
})();
