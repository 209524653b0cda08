"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const charts = read("data-charts"), data = read("data-samples");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const PALETTE = {
    light: ["#0a6a6a", "#c2571a", "#5a5aa8", "#8a6d00", "#a83258", "#2f7d32", "#2b6cb0", "#7a4a2a", "#5c6168", "#9a3fa0"],
    dark: ["#6cc7bd", "#f0a36b", "#a9a8ee", "#d9bd55", "#ee8fae", "#8ccf8f", "#86b8ee", "#cfa486", "#a9aeb5", "#d49be0"],
  };
  const SHAPES = ["circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left"];
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const views = {};

  function config() {
    const [ink, soft, line, accent] = ["ink", "soft", "line", "accent"].map(color);
    const font = getComputedStyle(document.body).fontFamily, category = PALETTE[dark.matches ? "dark" : "light"];
    const heat = dark.matches ? ["#22272c", "#6cc7bd"] : ["#f3f1ec", "#0a6a6a"];
    return {
      font, background: "transparent", view: { stroke: null }, range: { category, heatmap: heat, ramp: heat, symbol: SHAPES },
      axis: { labelColor: soft, titleColor: soft, titleFontWeight: 400, labelFontSize: 11, titleFontSize: 11, gridColor: line,
        domainColor: line, tickColor: line, labelLimit: 200 },
      axisX: { grid: false }, axisY: { domain: false, ticks: false, tickCount: 4 },
      legend: { labelColor: ink, titleColor: soft, orient: "top", titleFontWeight: 400, labelFontSize: 11, titleFontSize: 11, labelLimit: 160 },
      line: { color: accent }, bar: { color: accent }, area: { color: accent }, rule: { color: soft }, point: { color: accent },
      style: { chosen: { stroke: ink, fill: null } },
    };
  }

  async function draw(element) {
    const name = element.dataset.chart, spec = structuredClone(charts[name]);
    if (!spec || !window.vegaEmbed) return;
    Object.assign(spec, { width: "container", autosize: { type: "fit-x", contains: "padding" } });
    const style = config();
    style.legend.columns = element.clientWidth < 480 ? 2 : 3;
    if (name === "map") {
      spec.datasets = { points: points() };
      style.legend.columns = element.clientWidth < 560 ? 3 : 5;
    }
    if (spec.usermeta?.max_width) element.style.maxWidth = `${spec.usermeta.max_width}px`;
    views[name]?.finalize();
    const made = await vegaEmbed(element, spec, {
      mode: "vega-lite", actions: false, ast: true, logLevel: 1, renderer: name === "map" ? "canvas" : "svg", config: style,
    });
    views[name] = made;
    // The box around the drawing has the label; the drawing itself is for the eye.
    element.querySelectorAll("svg, canvas").forEach((drawing) => {
      drawing.setAttribute("aria-hidden", "true");
      ["role", "aria-label", "aria-roledescription"].forEach((name) => drawing.removeAttribute(name));
    });
    element.querySelectorAll(".chart-wrapper").forEach((box) => box.removeAttribute("role"));
    if (name === "map") listen(made.view);
  }

  const drawn = [...document.querySelectorAll("[data-chart]")];
  const drawAll = () => drawn.reduce((before, element) => before.then(() => draw(element)), Promise.resolve());

  // --- samples ---

  const samples = data.samples || [], classes = data.classes || [], several = (data.modalities || []).length > 1;
  const choice = { encoder: data.after, method: "PCA", highlight: "" };
  let inspected = -1;
  const shortName = (name) => String(name).split(": ").pop().replaceAll("\\", "/").split("/").slice(-2).join("/");
  const labelOf = (s) => (s.label >= 0 && classes[s.label] !== undefined ? classes[s.label] : "");
  const element = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  };
  const nameOf = (s) => [several ? data.modalities[s.modality] : "", labelOf(s), shortName(s.name)].filter(Boolean).join(", ");

  function picture(s) {
    if (s.preview.picture) {
      const image = element("img", { src: s.preview.picture, alt: nameOf(s), decoding: "async" });
      image.onload = () => image.classList.toggle("small", image.naturalWidth < 48);
      return image;
    }
    return element("span", { className: "text", textContent: s.preview.text || shortName(s.name), style: "display:block" });
  }

  function shown(i) {
    const s = samples[i], box = element("div", { className: "shown" });
    if (s.preview.clip) box.append(element("video", { src: s.preview.clip, poster: s.preview.picture, controls: true, loop: true, muted: true, playsInline: true, ariaLabel: nameOf(s) }));
    else box.append(picture(s));
    if (s.preview.sound) box.append(element("audio", { src: s.preview.sound, controls: true, preload: "none", ariaLabel: nameOf(s) }));
    if (labelOf(s)) box.append(element("p", { className: "label", textContent: labelOf(s) }));
    box.append(element("p", { className: "name", textContent: shortName(s.name), title: s.name }));
    return box;
  }

  function tile(i, ...notes) {
    const made = element("button", { type: "button", className: "tile" }, picture(samples[i]), ...notes);
    made.addEventListener("click", () => {
      inspect(i);
      document.getElementById("map")?.scrollIntoView({ behavior: still.matches ? "auto" : "smooth" });
    });
    return made;
  }

  function near(i, encoder) {
    const { rows, cosines } = data.neighbors[encoder], s = samples[i], list = element("ol");
    const isText = rows[i].some((j) => !samples[j].preview.picture);
    const title = encoder === data.after ? "after training" : "before training";
    rows[i].forEach((j, k) => {
      const other = samples[j], what = several ? "sample" : "class", known = several || (s.label >= 0 && other.label >= 0);
      const same = several ? s.id === other.id : s.label === other.label;
      const mark = known ? element("span", { className: same ? "same" : "other", textContent: same ? "✓ " : "✗ ", ariaLabel: same ? `same ${what}` : `another ${what}` }) : null;
      mark?.setAttribute("role", "img");
      const text = labelOf(other) || (other.preview.picture ? shortName(other.name) : "");
      list.append(element("li", {}, tile(j, element("span", { className: "name", title: nameOf(other) }, mark, text),
        element("span", { className: "cosine", textContent: cosines[i][k].toFixed(3) }))));
    });
    return element("div", { className: isText ? "near texts" : "near" }, element("p", { textContent: title, title: encoder }), list);
  }

  const encoders = [data.after, data.before].filter(Boolean);
  const neighborRows = (i) => element("div", { className: "rows" }, ...encoders.map((encoder) => near(i, encoder)));

  function inspect(i) {
    const box = document.getElementById("inspected");
    if (!box || i < 0 || i >= samples.length) return;
    inspected = i;
    document.getElementById("sample").value = i;
    box.replaceChildren(shown(i), neighborRows(i));
    views.map?.view.signal("chosen", i).runAsync();
  }

  function points() {
    const map = data.maps[choice.encoder][choice.method] || data.maps[choice.encoder].PCA;
    return map.points.map(([x, y], i) => {
      const group = several ? data.modalities[samples[i].modality] : labelOf(samples[i]);
      return { x, y, i, group };
    }).filter((point) => !choice.highlight || point.group === choice.highlight);
  }

  function listen(view) {
    let box = null;
    const hide = () => { box?.remove(); box = null; };
    view.signal("chosen", inspected).runAsync();
    view.addEventListener("pointermove", (event, item) => {
      const i = item?.datum?.datum?.i ?? item?.datum?.i;
      if (i === undefined || !samples[i]) return hide();
      if (box?.dataset.i !== String(i)) {
        hide();
        box = element("div", { className: "hovered" }, picture(samples[i]), element("div", { textContent: labelOf(samples[i]) || shortName(samples[i].name) }));
        box.dataset.i = i;
        box.setAttribute("aria-hidden", "true");
        document.body.append(box);
      }
      box.style.left = `${Math.min(event.clientX + 14, innerWidth - 150)}px`;
      box.style.top = `${Math.max(8, Math.min(event.clientY + 14, innerHeight - box.offsetHeight - 8))}px`;
    });
    view.container().addEventListener("pointerleave", hide);
    view.addEventListener("click", (event, item) => {
      const i = item?.datum?.datum?.i ?? item?.datum?.i;
      if (i !== undefined) inspect(i);
    });
  }

  function describeMap() {
    const map = data.maps[choice.encoder];
    const { explained } = map[choice.method] || map.PCA;
    const told = explained ? `, whose two axes have ${Math.round(100 * (explained[0] + explained[1]))} % of the variance` : "";
    document.getElementById("map-about").textContent =
      `${samples.length.toLocaleString("en")} of ${data.total.toLocaleString("en")} held-out samples ${choice.encoder === data.after ? "after" : "before"} training (${choice.encoder}), by ${choice.method}${told}. Point at one to see it, select one to keep it.`;
  }

  function redrawMap() {
    describeMap();
    window.drawn = draw(document.querySelector('[data-chart="map"]'));
  }

  function options(name, values, titles) {
    const box = document.querySelector(`[data-choice="${name}"]`);
    if (values.length < 2) return box.closest("fieldset").remove();
    values.forEach((value, k) => {
      const input = element("input", { type: "radio", name, value, checked: value === choice[name] });
      input.addEventListener("change", () => { choice[name] = value; redrawMap(); });
      box.append(element("label", {}, input, titles[k]));
    });
  }

  function fillSamples() {
    if (!samples.length) return;
    document.getElementById("examples")?.append(...data.examples.map((i) => element("div", { className: "query" }, shown(i), neighborRows(i))));
    document.getElementById("misplaced")?.append(...data.out_of_place.map((i) => {
      const s = samples[i];
      return element("div", { className: "card" }, tile(i), s.preview.sound ? element("audio", { src: s.preview.sound, controls: true, preload: "none", ariaLabel: nameOf(s) }) : null,
        element("p", {}, "labeled ", element("strong", { textContent: labelOf(s) }), `, ${Math.round(100 * s.share)} % of the neighbors are `, element("strong", { textContent: classes[s.guess] ?? s.guess })),
        element("p", {}, element("small", { textContent: shortName(s.name), title: s.name })));
    }));
    if (!charts.map) return;
    options("encoder", encoders, ["after training", "before training"]);
    options("method", Object.keys(data.maps[data.after]), Object.keys(data.maps[data.after]));
    const select = document.getElementById("highlight");
    const groups = several ? data.modalities : [...new Set(samples.map(labelOf))].filter(Boolean).sort();
    if (groups.length < 2) select.parentElement.remove();
    groups.forEach((group) => select.append(element("option", { value: group, textContent: group })));
    select.addEventListener("change", () => { choice.highlight = select.value; redrawMap(); });
    document.getElementById("sample").addEventListener("input", (event) => inspect(Number(event.target.value)));
    inspect(data.out_of_place[0] ?? data.examples[0] ?? 0);
    describeMap();
  }

  document.querySelectorAll(".view img").forEach((image) => image.classList.toggle("small", image.naturalWidth > 0 && image.naturalWidth < 64));
  fillSamples();
  window.drawn = drawAll();
  dark.addEventListener("change", () => { window.drawn = drawAll(); });

  const reload = document.getElementById("reload");
  if (reload) {
    const kept = (value) => { try { if (value !== undefined) sessionStorage.setItem("reload", value); return sessionStorage.getItem("reload"); } catch { return null; } };
    reload.checked = kept() !== "no";
    reload.addEventListener("change", () => kept(reload.checked ? "yes" : "no"));
    setInterval(() => { if (reload.checked && !document.hidden) location.reload(); }, 30000);
  }
})();
