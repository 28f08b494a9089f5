"use strict";
// Shows what the server sends: a picture with the step it belongs to, again and again.
(() => {
  const byId = (id) => document.getElementById(id);
  const charts = strips(byId("strips"));
  let rewards = [], actions = [];

  function begin(message) {
    rewards = []; actions = [];
    byId("policy").textContent = message.policy;
    byId("episode").textContent = `episode ${message.number}`;
  }
  function step(message) {
    byId("picture").hidden = false;
    byId("picture").src = "data:image/webp;base64," + message.picture;
    rewards.push(...message.rewards);
    for (const action of message.actions) action.forEach((value, k) => (actions[k] = actions[k] || []).push(value));
    byId("readout").textContent = `step ${message.step.toLocaleString("en")} · return so far ${message.return.toFixed(1)}`;
    const panels = [{ title: "reward", lines: [rewards] }, { title: message.title, lines: actions }];
    charts.draw(panels, Math.max(rewards.length, 50));
    charts.at(rewards.length - 1);
  }
  function end(message) {
    const line = document.createElement("li");
    line.textContent = `episode ${message.number}: return ${message.return.toFixed(1)} in ${message.steps.toLocaleString("en")} steps, ${message.policy}`;
    byId("ended").prepend(line);
    while (byId("ended").children.length > 10) byId("ended").lastChild.remove();
  }
  const kinds = { begin, step, end };
  const events = new EventSource("events");
  events.onmessage = (event) => { const message = JSON.parse(event.data); kinds[message.kind](message); };
  events.onopen = () => (byId("state").textContent = "live");
  events.onerror = () => (byId("state").textContent = "the command has ended, or can't be reached");
})();
