"use strict";
(() => {
  const root = document.documentElement;
  addEventListener("error", (event) => { root.dataset.error = event.message || "error"; });
  const viewer = document.querySelector(".viewer");
  const planes = [...viewer.querySelectorAll(".plane")];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);

  // What each view draws: {m} stands for "before" or "after".
  const MODES = {
    slider: { base: "fixed", top: "{m}", words: "fixed left of the divider, moving image right of it" },
    flicker: { base: "fixed", top: "{m}", words: "fixed and moving image in turn" },
    checker: { base: "fixed", top: "{m}", words: "checkerboard of fixed and moving image" },
    edges: { base: "fixed", over: ["edges-{m}"], words: "fixed image with edges of the moving image" },
    labels: { base: "fixed", over: ["labels-fixed", "labels-{m}"], words: "fixed image with labels of both images" },
    grid: { base: "after", over: ["grid"], words: "moved image with the deformation grid" },
    volume: { base: "volume", over: ["edges-fixed"], words: "map of volume change" },
    residual: { base: "fixed", over: ["residual-{m}"], words: "fixed image with residual" },
    error: { base: "fixed", over: ["error"], words: "fixed image with true error" },
    bound: { base: "fixed", over: ["bound"], words: "fixed image with error bound" },
    "label-uncertainty": { base: "fixed", over: ["label-uncertainty"], words: "fixed image with label uncertainty" },
  };
  const state = { mode: "slider", place: viewer.dataset.place, moving: "after", split: 50, tile: 20, on: false, playing: true };
  const link = (element, id) => {
    const found = id && document.getElementById(id);
    if (found) element.setAttribute("href", "#" + id); else element.removeAttribute("href");
  };

  function draw() {
    const mode = MODES[state.mode];
    const fill = (layer) => layer && layer.replace("{m}", state.moving);
    Object.assign(viewer.dataset, { mode: state.mode, place: state.place, moving: state.moving });
    planes.forEach((plane, number) => {
      const svg = plane.querySelector("svg"), key = `${state.place}-${plane.dataset.plane}-`;
      const columns = +svg.dataset.columns, top = plane.querySelector(".top"), handle = plane.querySelector(".handle");
      link(plane.querySelector(".base"), key + mode.base);
      link(plane.querySelector(".top-image"), mode.top && key + fill(mode.top));
      plane.querySelectorAll(".over").forEach((over, i) => link(over, mode.over && mode.over[i] && key + fill(mode.over[i])));
      top.removeAttribute("clip-path"); top.removeAttribute("mask");
      if (state.mode === "slider") top.setAttribute("clip-path", `url(#clip-${number + 1})`);
      if (state.mode === "checker") top.setAttribute("mask", `url(#mask-${number + 1})`);
      top.setAttribute("visibility", state.mode === "flicker" && !state.on ? "hidden" : "visible");
      const x = columns * state.split / 100;
      svg.querySelector("clipPath rect").setAttribute("x", x);
      handle.setAttribute("x1", x); handle.setAttribute("x2", x);
      handle.setAttribute("visibility", state.mode === "slider" ? "visible" : "hidden");
      const pattern = svg.querySelector("pattern"), t = state.tile;
      pattern.setAttribute("width", 2 * t); pattern.setAttribute("height", 2 * t);
      pattern.querySelector("path").setAttribute("d", `M0 0h${t}v${t}h-${t}zM${t} ${t}h${t}v${t}h-${t}z`);
      const position = plane.querySelector(".position");
      if (position) position.textContent = POSITIONS[`${state.place}-${plane.dataset.plane}`] || "";
      svg.setAttribute("aria-label", `${plane.dataset.plane} plane${position ? " at " + position.textContent : ""}: ${mode.words}, ${state.moving} registration`);
    });
    all("[data-for]").forEach((e) => { e.hidden = e.dataset.for !== state.mode; });
    all("[data-at]").forEach((e) => { e.hidden = e.dataset.at !== state.place; });
    const both = [mode.top, ...(mode.over || [])].some((layer) => layer && layer.includes("{m}"));
    all("input[name=moving]").forEach((input) => { input.disabled = !both; });
    for (const name of ["mode", "place", "moving"]) {
      const input = one(`input[name=${name}][value="${state[name]}"]`);
      if (input) input.checked = true;
    }
    one("#shown").textContent = state.on ? "Moving" : "Fixed";
    one("#play").textContent = state.playing ? "Pause" : "Play";
  }
  const set = (change) => { Object.assign(state, change); draw(); };

  const POSITIONS = JSON.parse(one("#positions").textContent);
  for (const name of ["mode", "place", "moving"])
    all(`input[name=${name}]`).forEach((input) => input.addEventListener("change", () => set({ [name]: input.value })));
  one("#split").addEventListener("input", (event) => set({ split: +event.target.value }));
  one("#tile").addEventListener("input", (event) => set({ tile: +event.target.value }));

  // Flicker: stays below three changes a second, and starts still for people who asked for less motion.
  let timer = 0;
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) state.playing = false;
  function tick() {
    clearTimeout(timer);
    if (state.mode === "flicker" && state.playing) set({ on: !state.on });
    timer = setTimeout(tick, 1000 / +one("#speed").value);
  }
  tick();
  one("#play").addEventListener("click", () => set({ playing: !state.playing }));
  one("#speed").addEventListener("input", tick);

  planes.forEach((plane) => {
    const svg = plane.querySelector("svg");
    const drag = (event) => {
      if (state.mode !== "slider") return;
      const box = svg.getBoundingClientRect();
      const split = Math.max(0, Math.min(100, 100 * (event.clientX - box.left) / box.width));
      one("#split").value = split;
      set({ split });
    };
    svg.addEventListener("pointerdown", (event) => { drag(event); svg.setPointerCapture(event.pointerId); });
    svg.addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  });

  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|BUTTON|SUMMARY)$/.test(event.target.tagName) && event.key === " ") return;
    const choices = all("input[name=mode]");
    if (/^[1-9]$/.test(event.key) && choices[event.key - 1]) set({ mode: choices[event.key - 1].value });
    else if (event.key === "b" || event.key === "B") set({ moving: state.moving === "after" ? "before" : "after" });
    else if (event.key === " " && state.mode === "flicker") { event.preventDefault(); set({ playing: !state.playing }); }
  });

  one("#theme").addEventListener("click", () => {
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  });
  const toggle = one(".sheet-toggle"), sheet = one("#sheet");
  toggle.addEventListener("click", () => {
    const open = sheet.classList.toggle("open");
    toggle.setAttribute("aria-expanded", open);
    toggle.textContent = open ? "Hide the sheet" : "Show all pictures on one sheet";
  });

  all("table.sortable").forEach((table) => {
    const body = table.tBodies[0];
    table.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
      const head = button.closest("th"), column = head.cellIndex;
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("th").forEach((th) => th.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const value = (row) => { const text = row.cells[column].textContent.trim(); const n = parseFloat(text.replace(/,/g, "")); return isNaN(n) ? text : n; };
      const order = (a, b) => { const x = value(a), y = value(b); return typeof x === typeof y ? (x < y ? -1 : x > y ? 1 : 0) : typeof x === "number" ? -1 : 1; };
      [...body.rows].sort((a, b) => (down ? -1 : 1) * order(a, b)).forEach((row) => body.append(row));
    }));
  });
  addEventListener("beforeprint", () => all("details").forEach((d) => { d.dataset.was = d.open; d.open = true; }));
  addEventListener("afterprint", () => all("details").forEach((d) => { d.open = d.dataset.was === "true"; }));

  // report.html#mode=grid&place=worst&moving=before&theme=dark opens that view.
  const wanted = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (wanted.theme) root.dataset.theme = wanted.theme;
  if (wanted.sheet) toggle.click();
  if (MODES[wanted.mode] && one(`input[name=mode][value="${wanted.mode}"]`)) state.mode = wanted.mode;
  if (wanted.place && one(`input[name=place][value="${wanted.place}"]`)) state.place = wanted.place;
  if (wanted.moving === "before") state.moving = "before";
  draw();
  root.dataset.ready = "true";
})();
