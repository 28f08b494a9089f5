"use strict";
// Plays the pictures in #clip-data with a slider and a button; the charts below follow.
(() => {
  const data = JSON.parse(document.getElementById("clip-data").textContent);
  const picture = document.getElementById("clip-picture"), slider = document.getElementById("clip-slider");
  const button = document.getElementById("clip-button"), readout = document.getElementById("clip-readout");
  const charts = strips(document.getElementById("clip-strips"));
  let at = 0, timer = null;

  function show(index) {
    at = index;
    const step = data.shown[at];
    picture.src = "data:image/webp;base64," + data.pictures[at];
    slider.value = at;
    readout.textContent = `step ${step.toLocaleString("en")} of ${data.steps.toLocaleString("en")} · return so far ${data.returns[at].toFixed(1)}`;
    charts.at(step / data.per_point);
  }
  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => show((at + 1) % data.pictures.length), 1000 / data.per_second) : null;
    button.textContent = on ? "Pause" : "Play";
  }
  function draw() {
    charts.draw(data.panels, data.panels[0].lines[0].length);
    charts.at(data.shown[at] / data.per_point);
  }
  button.addEventListener("click", () => play(timer === null));
  slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
  addEventListener("resize", draw);
  draw();
  show(0);
  // Who asked the system for less motion starts the film by hand.
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
})();
