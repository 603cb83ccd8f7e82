"use strict";
// Everything is drawn from the photo and its masks, on demand: a canvas far from the window holds nothing.
// No pixel is read back, which a browser forbids where the photo lies in a file of its own.
(() => {
  const PAGE = 60; // cards at a time
  const NEAR = "600px"; // from the window, within which a card is drawn
  // Okabe and Ito's colours, and dashes besides: two outlines never differ in hue alone.
  const LINES = [
    ["#F0E442", []], ["#56B4E9", [9, 4]], ["#E69F00", [3, 3]], ["#CC79A7", [12, 4, 3, 4]],
    ["#009E73", [6, 6]], ["#D55E00", [14, 3]], ["#FFFFFF", [2, 5]], ["#0072B2", [9, 3, 2, 3, 2, 3]],
  ];
  const SVG = "http://www.w3.org/2000/svg";

  const $ = (id) => document.getElementById(id);
  const cards = JSON.parse($("cards").textContent);
  cards.forEach((card, index) => {
    card.index = index;
    card.on = card.masks.map(() => true);
    card.stop = card.masks.map(() => null); // of the curve; null is the explanation itself
    card.text = [card.name, ...card.masks.map((mask) => mask.target.name)].join("\n").toLowerCase();
  });

  // --- words ---------------------------------------------------------------------------------------

  function make(tag, properties, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(properties || {})) {
      if (name in element) element[name] = value;
      else element.setAttribute(name, value);
    }
    element.append(...children.filter((child) => child !== null));
    return element;
  }

  // Two digits where it is small; 0 % and 100 % are said of none and all alone, as in the words.
  function percent(share) {
    if (share === 0 || share === 1) return `${100 * share}\u00a0%`;
    const value = Math.min(Math.max(100 * share, 0.1), 99.9);
    return `${value < 10 ? value.toFixed(1) : Math.round(value)}\u00a0%`;
  }

  const title = (card) => [...new Set(card.masks.map((mask) => mask.target.name))].join(", ") || card.name;

  function facts(card) {
    const masks = card.masks;
    const said = masks.length > 1 ? [`${masks.length} masks`] : [];
    said.push(`area ${masks.map((mask) => percent(mask.area)).join(", ")}`);
    if (masks.length === 1 && masks[0].retention !== null) said.push(`kept ${percent(masks[0].retention)}`);
    return said.join(" · ");
  }

  // --- pictures ------------------------------------------------------------------------------------

  async function photoOf(index) {
    const here = () => document.readyState !== "loading" || $(`photo-${index}`)?.nextElementSibling;
    while (!here()) await new Promise((again) => setTimeout(again, 20)); // photos come after this script
    const image = new Image();
    image.src = $(`photo-${index}`).textContent;
    try {
      await image.decode();
    } catch { // the page was moved without its folder
      $("missing").hidden = false;
      return null;
    }
    return image;
  }

  async function unpacked(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  // A byte a pixel, 1 where kept, of each instance that is switched on.
  function layers(card) {
    return Promise.all(card.masks.map(async (mask, number) => {
      if (!card.on[number]) return null;
      const stop = card.stop[number];
      const bits = stop === null ? await unpacked(mask.mask)
        : (await unpacked(mask.levels)).map((level) => level <= stop);
      return { bits, line: LINES[number % LINES.length] };
    })).then((found) => found.filter(Boolean));
  }

  function surface(width, height) {
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = height;
    return canvas;
  }

  // The border of a mask as closed lines along the edges of its pixels.
  function outline(bits, width, height) {
    const across = width + 1;
    const next = new Int32Array(across * (height + 1)).fill(-1);
    const other = next.slice(); // where two regions touch, two lines leave a corner
    const edge = (from, to) => { (next[from] < 0 ? next : other)[from] = to; };
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        if (!bits[at]) continue;
        const corner = y * across + x;
        if (!y || !bits[at - width]) edge(corner, corner + 1);
        if (x === width - 1 || !bits[at + 1]) edge(corner + 1, corner + 1 + across);
        if (y === height - 1 || !bits[at + width]) edge(corner + 1 + across, corner + across);
        if (!x || !bits[at - 1]) edge(corner + across, corner);
      }
    }
    const path = new Path2D();
    for (let start = 0; start < next.length; start++) {
      while (next[start] >= 0) {
        path.moveTo(start % across, Math.floor(start / across));
        let at = start;
        do {
          const to = next[at];
          next[at] = other[at];
          other[at] = -1;
          path.lineTo(to % across, Math.floor(to / across));
          at = to;
        } while (at !== start && next[at] >= 0);
        path.closePath();
      }
    }
    return path;
  }

  function stencil(card, shown) {
    const canvas = surface(card.width, card.height);
    const data = new ImageData(card.width, card.height);
    for (const { bits } of shown) {
      for (let at = 0; at < bits.length; at++) if (bits[at]) data.data[4 * at + 3] = 255;
    }
    canvas.getContext("2d").putImageData(data, 0, 0);
    return canvas;
  }

  function cover(context, image) {
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(image, 0, 0, context.canvas.width, context.canvas.height);
  }

  // The photo where the mask keeps it, and nothing elsewhere.
  function kept(card, image, shown, width, height) {
    const canvas = surface(width, height);
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(stencil(card, shown), 0, 0, width, height);
    context.globalCompositeOperation = "source-in";
    cover(context, image);
    return canvas;
  }

  function ground(context, image, chosen) {
    const { width, height } = context.canvas;
    if (chosen.kind !== "blurred") {
      context.fillStyle = chosen.colour;
      context.fillRect(0, 0, width, height);
      return;
    }
    const small = surface(16, 16); // a browser without filters blurs by enlarging
    cover(small.getContext("2d"), image);
    cover(context, small);
    if ("filter" in context) {
      context.filter = `blur(${width / 24}px)`;
      context.drawImage(image, -width / 16, -height / 16, 1.125 * width, 1.125 * height);
      context.filter = "none";
    }
  }

  async function paint(canvas, card, view) {
    const job = (canvas.job = {}); // a later one takes over
    const [image, shown] = await Promise.all([photoOf(card.index), layers(card)]);
    const width = Math.round(canvas.clientWidth * Math.min(devicePixelRatio, 2));
    if (canvas.job !== job || !width || !image) return;
    const height = Math.round(width * card.height / card.width);
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    if (view === "kept") {
      ground(context, image, state.ground);
    } else {
      cover(context, image);
    }
    if (view === "overlay") { // gray from 30 to 120 outside the mask, as in overlay.png
      context.globalCompositeOperation = "saturation";
      context.fillStyle = "#808080";
      context.fillRect(0, 0, width, height);
      context.globalCompositeOperation = "source-over";
      context.fillStyle = "rgba(46, 46, 46, 0.647)";
      context.fillRect(0, 0, width, height);
    }
    if (view !== "photo") context.drawImage(kept(card, image, shown, width, height), 0, 0);
    if (view === "overlay" || (view === "kept" && card.masks.length > 1)) {
      const scale = width / card.width;
      const unit = width / canvas.clientWidth / scale; // a pixel of the page
      context.scale(scale, scale);
      context.lineJoin = "round";
      for (const { bits, line: [colour, dash] } of shown) {
        const path = outline(bits, card.width, card.height);
        context.lineWidth = 3.5 * unit;
        context.strokeStyle = "rgba(0, 0, 0, 0.7)";
        context.stroke(path);
        context.lineWidth = 1.75 * unit;
        context.strokeStyle = colour;
        context.setLineDash(dash.map((length) => length * unit));
        context.stroke(path);
        context.setLineDash([]);
      }
    }
    canvas.dataset.drawn = view;
  }

  function described(card, view) {
    const what = { overlay: "Overlay", kept: "Kept pixels", photo: "Photo" }[view];
    return `${what}: ${title(card)}, ${card.name}`;
  }

  // --- what is chosen ------------------------------------------------------------------------------

  const GROUNDS = [
    ["gray", "Gray", "#7f7f7f"], ["black", "Black", "#000000"], ["white", "White", "#ffffff"],
    ["blurred", "Photo, blurred", ""], ["colour", "Colour", ""],
  ];
  const stated = cards.flatMap((card) => card.masks).map((mask) => mask.background.name)[0] || "#7f7f7f";
  const known = GROUNDS.find(([, , colour]) => colour === stated);
  const state = {
    view: "overlay",
    ground: { kind: known ? known[0] : "colour", colour: stated },
    picked: known ? "#0072b2" : stated, // by the colour field
  };
  const controls = []; // of the background; all show the same

  function groundControl(name) {
    const box = make("fieldset", { className: "segments" }, make("legend", {}, "Background"));
    for (const [kind, label, colour] of GROUNDS) {
      const radio = make("input", { type: "radio", name, value: kind });
      const dot = make("i", { className: `dot ${kind}` });
      if (colour) dot.style.background = colour;
      radio.addEventListener("change", () => choose(kind));
      box.append(make("label", {}, radio, make("span", {}, dot, label)));
    }
    const field = make("input", { type: "color", "aria-label": "Colour of the background" });
    field.addEventListener("input", () => { state.picked = field.value; choose("colour"); });
    box.append(field);
    controls.push({ box, field });
    return box;
  }

  function choose(kind) {
    const colour = kind === "colour" ? state.picked : GROUNDS.find(([one]) => one === kind)[2];
    state.ground = { kind, colour };
    showGround();
    repaint();
  }

  function showGround() {
    for (const { box, field } of controls) {
      for (const radio of box.querySelectorAll("input[type=radio]")) radio.checked = radio.value === state.ground.kind;
      field.value = state.picked;
      box.querySelector(".dot.colour").style.background = state.picked;
    }
  }

  // Switches of a photo's instances; `name` tells those of the card from those of the opened photo.
  function switches(card, name) {
    const box = make("fieldset", { className: "switches" }, make("legend", { className: "hidden" }, "Masks shown"));
    card.masks.forEach((mask, number) => {
      const input = make("input", { type: "checkbox", checked: card.on[number] });
      input.dataset.mask = `${card.index}-${number}`;
      input.addEventListener("change", () => {
        card.on[number] = input.checked;
        for (const same of document.querySelectorAll(`[data-mask="${card.index}-${number}"]`)) same.checked = input.checked;
        repaint(card);
      });
      box.append(make("label", {}, input, key(number), instance(card, number)));
    });
    return box;
  }

  function instance(card, number) {
    const { instance: one, target } = card.masks[number];
    return one ? `${one.number} · ${target.name}` : `${number + 1} · ${target.name}`;
  }

  // A piece of an instance's outline.
  function key(number) {
    const [colour, dash] = LINES[number % LINES.length];
    const svg = draw("svg", { viewBox: "0 0 30 12", class: "key", "aria-hidden": "true" });
    svg.append(draw("line", { x1: 1, x2: 29, y1: 6, y2: 6, class: "casing" }));
    svg.append(draw("line", { x1: 1, x2: 29, y1: 6, y2: 6, stroke: colour, "stroke-dasharray": dash.join(" ") }));
    return svg;
  }

  function draw(tag, attributes, text) {
    const element = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // --- the gallery ---------------------------------------------------------------------------------

  const gallery = $("gallery");
  const visible = new Map(); // from a canvas near the window to its card
  const near = new IntersectionObserver((entries) => {
    for (const { target: canvas, isIntersecting } of entries) {
      const card = cards[canvas.dataset.card];
      if (isIntersecting) {
        visible.set(canvas, card);
        paint(canvas, card, state.view);
      } else if (visible.delete(canvas)) {
        canvas.job = null;
        canvas.width = canvas.height = 1;
      }
    }
  }, { rootMargin: NEAR });

  const end = new IntersectionObserver((entries) => {
    if (entries.some(({ isIntersecting }) => isIntersecting)) append();
  }, { rootMargin: NEAR });

  let order = [];
  let shownCards = 0;

  function cardOf(card) {
    const name = card.name.split("/").pop();
    if (card.failure) {
      return make("li", { className: "card failed" },
        make("div", { className: "nothing" }, make("span", {}, "Not explained")),
        make("strong", {}, name),
        make("span", { className: "facts" }, card.failure));
    }
    const canvas = make("canvas", { className: "picture" });
    canvas.setAttribute("aria-hidden", "true"); // the button says what it is
    canvas.dataset.card = card.index;
    canvas.style.aspectRatio = `${card.width} / ${card.height}`;
    near.observe(canvas);
    const flagged = card.masks.some((mask) => mask.flags.length);
    const button = make("button", { type: "button", className: "open" }, canvas,
      make("strong", {}, title(card)),
      make("span", { className: "facts" }, facts(card)),
      flagged ? make("span", { className: "flag" }, "flagged") : null,
      make("span", { className: "hidden" }, name));
    button.setAttribute("aria-haspopup", "dialog");
    button.title = card.name;
    button.addEventListener("click", () => open(card));
    const item = make("li", { className: "card" }, button, card.masks.length > 1 ? switches(card) : null);
    item.dataset.card = card.index;
    return item;
  }

  function append() {
    const more = order.slice(shownCards, shownCards + PAGE);
    gallery.append(...more.map(cardOf));
    shownCards += more.length;
    $("more").hidden = shownCards >= order.length;
    end.unobserve($("more")); // and again, lest it should still be in sight
    end.observe($("more"));
  }

  function number(id) {
    const value = $(id).valueAsNumber;
    return Number.isFinite(value) ? value / 100 : null;
  }

  function matches(card, words, show, area, least) {
    if (!words.every((word) => card.text.includes(word))) return false;
    if (show === "failed" && !card.failure) return false;
    if (show === "flagged" && !card.masks.some((mask) => mask.flags.length)) return false;
    if (show === "insufficient" && !card.masks.some((mask) => !mask.sufficient)) return false;
    if (area === null && least === null) return true;
    return card.masks.some((mask) => (area === null || mask.area <= area + 1e-9)
      && (least === null || (mask.retention !== null && mask.retention >= least - 1e-9)));
  }

  function arrange() {
    const words = $("text").value.toLowerCase().split(/\s+/).filter(Boolean);
    const asked = [words, $("show").value, number("area"), number("kept")];
    order = cards.filter((card) => matches(card, ...asked));
    const [by, way] = $("sort").value.split("-");
    if (way) {
      const value = (card) => {
        if (card.failure) return null;
        return by === "label" ? title(card) : card.masks[0][by]; // of several masks the first
      };
      const sign = way === "up" ? 1 : -1;
      order.sort((one, two) => {
        const [a, b] = [value(one), value(two)];
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * (typeof a === "string" ? a.localeCompare(b) : a - b) || one.index - two.index;
      });
    }
    near.disconnect();
    visible.clear();
    gallery.replaceChildren();
    shownCards = 0;
    append();
    const all = `${cards.length} photo${cards.length === 1 ? "" : "s"}`;
    $("count").textContent = order.length === cards.length ? all : `${order.length} of ${all}`;
    gallery.classList.toggle("empty", !order.length);
  }

  function repaint(only) {
    for (const [canvas, card] of visible) if (!only || card === only) paint(canvas, card, state.view);
    if (opened && (!only || opened === only)) paintOpened();
  }

  // --- one photo -----------------------------------------------------------------------------------

  const dialog = $("detail");
  let opened = null;
  let pictures = []; // canvases of the opened photo, and their views

  function open(card) {
    opened = card;
    controls.splice(1); // those of the photo before
    $("detail-title").textContent = title(card);
    $("detail-name").textContent = card.name;
    $("detail-body").replaceChildren(...body(card));
    const explained = order.filter((one) => !one.failure);
    const place = explained.indexOf(card);
    for (const [id, other] of [["previous", explained[place - 1]], ["next", explained[place + 1]]]) {
      $(id).disabled = !other;
      $(id).onclick = () => open(other);
    }
    showGround();
    if (!dialog.open) {
      dialog.showModal();
      $("detail-title").focus();
    } else if (document.activeElement === document.body) { // the button that was pressed is disabled
      $("detail-title").focus();
    }
    dialog.scrollTop = 0;
    paintOpened();
  }

  function paintOpened() {
    for (const [canvas, view] of pictures) paint(canvas, opened, view);
  }

  function body(card) {
    pictures = [];
    const figures = make("div", { className: "figures" });
    for (const [view, caption] of [["photo", "What the classifier saw"], ["overlay", "The mask, outlined"], ["kept", "Kept pixels"]]) {
      const canvas = make("canvas", { className: "picture" });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", described(card, view));
      canvas.style.aspectRatio = `${card.width} / ${card.height}`;
      pictures.push([canvas, view]);
      figures.append(make("figure", { className: view }, canvas, make("figcaption", {}, caption)));
    }
    const parts = [figures, make("div", { className: "below" },
      card.masks.length > 1 ? switches(card) : null, groundControl("detail-ground"))];
    card.masks.forEach((mask, number) => parts.push(section(card, mask, number)));
    return parts;
  }

  function section(card, mask, number) {
    const { image, explanation } = mask.probability;
    const figures = make("dl", { className: "numbers" },
      figure("Area", percent(mask.area)),
      figure("Probability, photo", percent(image)),
      figure("Probability, kept pixels", percent(explanation)),
      mask.retention === null ? null : figure("Kept on unseen backgrounds", percent(mask.retention)));
    const words = make("ul", { className: "words" }, ...mask.words.map((said) =>
      make("li", { className: said.startsWith("Flag: ") ? "flag" : "" }, said.replaceAll(" %", "\u00a0%"))));
    const columns = [make("div", {}, make("h4", {}, "The certificate"), words)];
    if (mask.curve) columns.unshift(curve(card, mask, number));
    if (mask.top) {
      columns.push(make("div", { className: "tops" },
        ranked("Top classes of the photo", mask.top.image, mask.target.index),
        ranked("Top classes of the kept pixels", mask.top.explanation, mask.target.index)));
    }
    const many = card.masks.length > 1;
    const heading = make("h3", { className: many ? "" : "hidden" }, ...(many ? [key(number), instance(card, number)] : ["Explanation"]));
    return make("section", { className: "mask" }, heading, figures, make("div", { className: "columns" }, ...columns));
  }

  const figure = (name, value) => make("div", {}, make("dt", {}, name), make("dd", {}, value));

  function ranked(caption, entries, target) {
    const table = make("table", { className: "ranked" }, make("caption", {}, caption));
    for (const { index, name, probability } of entries) {
      const bar = make("i", { className: "bar" });
      bar.style.width = `${100 * probability}%`;
      const row = table.insertRow();
      row.className = index === target ? "target" : "";
      row.append(make("th", { scope: "row" }, name), make("td", {}, bar), make("td", {}, percent(probability)));
    }
    return table;
  }

  // The nested masks' curve, and the slider that moves the mask along it.
  function curve(card, mask, index) {
    const { area: areas, retention } = mask.curve;
    const stops = areas.map((area, level) => ({ area, level, kept: retention[level] }));
    const own = { area: mask.area, level: null, kept: mask.retention };
    stops.splice(stops.findIndex(({ area }) => area >= own.area), 0, own);

    const [height, left, right, above, below] = [250, 44, 14, 12, 40];
    const width = innerWidth < 760 ? 360 : 560; // so that its text is as large as the rest
    const least = Math.log(Math.max(Math.min(...stops.map(({ area }) => area)), 0.004));
    const x = (area) => left + (width - left - right) * (1 - Math.log(Math.max(area, 0.004)) / least);
    const y = (share) => above + (height - above - below) * (1 - share);
    const said = areas.map((area, at) => `${percent(area)}: ${percent(retention[at])}`).join(", ");
    const plot = draw("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "plot",
      "aria-label": `Share of unseen backgrounds that keep the decision, by area of the mask: ${said}` });
    for (const share of [0, 0.5, 1]) {
      plot.append(draw("line", { x1: left, x2: width - right, y1: y(share), y2: y(share), class: "grid" }));
      plot.append(draw("text", { x: left - 8, y: y(share) + 4, "text-anchor": "end" }, `${100 * share} %`));
    }
    for (const area of areas.filter((one) => [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1].includes(one))) {
      plot.append(draw("text", { x: x(area), y: height - below + 18, "text-anchor": "middle" }, `${100 * area}`));
    }
    plot.append(draw("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "area, % of the pixels"));
    const guide = draw("line", { y1: above, y2: height - below, class: "guide" });
    plot.append(guide, draw("polyline", { points: areas.map((area, at) => `${x(area)},${y(retention[at])}`).join(" "), class: "line" }));
    areas.forEach((area, at) => plot.append(draw("circle", { cx: x(area), cy: y(retention[at]), r: 3, class: "point" })));
    const mark = draw("circle", { r: 7, class: "here" });
    if (own.kept !== null) {
      const [cx, cy] = [x(own.area), y(own.kept)];
      plot.append(draw("path", { d: `M${cx} ${cy - 6}l6 6l-6 6l-6 -6z`, class: "own" }));
    }
    plot.append(mark);

    const id = `slider-${index}`;
    const slider = make("input", { type: "range", id, min: 0, max: stops.length - 1, step: 1 });
    const told = make("output", { htmlFor: id });
    slider.value = stops.findIndex(({ level }) => level === card.stop[index]);
    slider.disabled = !mask.levels;

    function show() {
      const { area, kept: share, level } = stops[slider.value];
      const at = `${percent(area)} of the pixels${level === null ? ", the explanation" : ""}`;
      const text = share === null ? at : `${at}: kept on ${percent(share)} of unseen backgrounds`;
      told.textContent = text;
      slider.setAttribute("aria-valuetext", text);
      guide.setAttribute("x1", x(area));
      guide.setAttribute("x2", x(area));
      mark.setAttribute("cx", x(area));
      mark.setAttribute("cy", y(share === null ? 0 : share));
    }

    function move() {
      card.stop[index] = stops[slider.value].level;
      show();
      repaint(card);
    }

    slider.addEventListener("input", move);
    plot.addEventListener("pointerdown", (event) => {
      const box = plot.getBoundingClientRect();
      const at = (event.clientX - box.left) * width / box.width;
      const far = stops.map(({ area }) => Math.abs(x(area) - at));
      slider.value = far.indexOf(Math.min(...far));
      if (mask.levels) move();
    });
    show();
    return make("div", { className: "curve" },
      make("h4", {}, "How much is enough"), plot,
      make("label", { htmlFor: id }, "Move the mask"), slider, told);
  }

  dialog.addEventListener("keydown", (event) => {
    const id = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
    if (id && !event.target.closest("input") && !event.altKey && !event.ctrlKey && !event.metaKey) $(id).click();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => {
    if (dialog.open) return; // this event comes late: another photo has been opened since
    const card = gallery.querySelector(`[data-card="${opened.index}"] .open`);
    opened = null;
    pictures = [];
    $("detail-body").replaceChildren();
    if (card) card.focus();
  });
  $("close").addEventListener("click", () => dialog.close());

  // --- begin ---------------------------------------------------------------------------------------

  $("grounds").append(groundControl("ground"));
  showGround();
  $("tools").addEventListener("submit", (event) => event.preventDefault());
  for (const id of ["text", "show", "sort", "area", "kept"]) $(id).addEventListener("input", arrange);
  for (const radio of document.getElementsByName("view")) {
    radio.addEventListener("change", () => { state.view = radio.value; repaint(); });
  }
  $("more").addEventListener("click", append);
  $("expand").addEventListener("click", () => {
    $("expand").setAttribute("aria-expanded", $("tools").classList.toggle("expanded"));
  });
  let resizing = 0;
  addEventListener("resize", () => { clearTimeout(resizing); resizing = setTimeout(repaint, 150); });
  arrange();
})();
