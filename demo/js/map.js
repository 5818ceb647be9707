// Runs once, in the map: fetches the points when the map is first seen, draws them, follows the query.
const canvas = element.querySelector('canvas');
const tip = element.querySelector('.fm-tip');
const pen = canvas.getContext('2d');
const GLIDE_MS = 700;
const REACH = 12; // pixels from the pointer within which a dot is found
const RADIUS = { image: 1.9, text: 1.9, audio: 3.2 };
let data = null; // { views, groups: [{ modality, points: { view: [[x, y]] }, names, files, ids }] }
let view = 'as trained';
let blend = 0; // 0: the first view, 1: the second; in between while they glide
let frame = { zoom: 1, x: 0, y: 0 };
let marker = null; // where the query is drawn, gliding after props.value
let hovered = null;
const hidden = new Set();

const still = () => matchMedia('(prefers-reduced-motion: reduce)').matches;
const colour = (name) => getComputedStyle(canvas).getPropertyValue(`--fm-${name}`).trim();

function size() {
  const box = canvas.getBoundingClientRect();
  const dots = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(box.width * dots) || canvas.height !== Math.round(box.height * dots)) {
    canvas.width = Math.round(box.width * dots);
    canvas.height = Math.round(box.height * dots);
  }
  pen.setTransform(dots, 0, 0, dots, 0, 0);
  return box;
}

function onScreen([x, y], box) {
  return [
    box.width * (0.5 + 0.47 * (x - frame.x) * frame.zoom),
    box.height * (0.5 - 0.46 * (y - frame.y) * frame.zoom),
  ];
}

function mixed(places, i) {
  const [a, b] = data.views.map((name) => (i === undefined ? places[name] : places[name][i]));
  return [a[0] + (b[0] - a[0]) * blend, a[1] + (b[1] - a[1]) * blend];
}

function draw() {
  const box = size();
  pen.clearRect(0, 0, box.width, box.height);
  if (!data || !box.width) return;
  for (const group of data.groups) {
    if (hidden.has(group.modality)) continue;
    pen.fillStyle = colour(group.modality);
    pen.globalAlpha = group.modality === 'audio' ? 0.9 : 0.5;
    const radius = RADIUS[group.modality] * Math.sqrt(Math.min(frame.zoom, 6));
    for (let i = 0; i < group.ids.length; i += 1) {
      const [x, y] = onScreen(mixed(group.points, i), box);
      if (x < -9 || y < -9 || x > box.width + 9 || y > box.height + 9) continue;
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.fill();
    }
  }
  pen.globalAlpha = 1;
  drawQuery(box);
  if (hovered) ring(onScreen(mixed(hovered.group.points, hovered.i), box), 7, colour('ink'), 2);
}

function drawQuery(box) {
  if (!marker || !props.value) return;
  const [x, y] = onScreen(mixed(marker), box);
  pen.strokeStyle = colour('ink');
  for (const [modality, i] of props.value.hits) {
    const group = data.groups.find((entry) => entry.modality === modality);
    if (!group || hidden.has(modality)) continue;
    const [hx, hy] = onScreen(mixed(group.points, i), box);
    pen.globalAlpha = 0.55;
    pen.lineWidth = 1;
    pen.beginPath(); pen.moveTo(x, y); pen.lineTo(hx, hy); pen.stroke();
    pen.globalAlpha = 1;
    ring([hx, hy], 5, colour(modality), 2);
  }
  ring([x, y], 11, colour('ink'), 3);
  pen.fillStyle = colour('ink');
  pen.beginPath(); pen.arc(x, y, 4.5, 0, 7); pen.fill();
  label(props.value.asked, x, y, box);
}

function label(words, x, y, box) {
  pen.font = '600 14px system-ui, sans-serif';
  const short = words.length > 40 ? `${words.slice(0, 39)}…` : words;
  const width = pen.measureText(short).width + 16;
  const left = Math.max(4, Math.min(x - width / 2, box.width - width - 4));
  const top = y > 60 ? y - 46 : y + 18;
  pen.fillStyle = colour('ink');
  pen.beginPath(); pen.roundRect(left, top, width, 26, 8); pen.fill();
  pen.fillStyle = colour('paper');
  pen.fillText(short, left + 8, top + 18);
}

function ring([x, y], radius, stroke, width) {
  pen.strokeStyle = stroke;
  pen.lineWidth = width;
  pen.beginPath(); pen.arc(x, y, radius, 0, 7); pen.stroke();
}

function glide(step) {
  if (still()) { step(1); draw(); return; }
  const started = performance.now();
  const tick = (now) => {
    const t = Math.min((now - started) / GLIDE_MS, 1);
    step(1 - (1 - t) ** 3);
    draw();
    if (t < 1) requestAnimationFrame(tick);
  };
  requestAnimationFrame(tick);
}

function land() {
  if (!data || !props.value) { marker = null; draw(); return; }
  const to = props.value.at;
  const from = marker ?? Object.fromEntries(data.views.map((name) => [name, [0, 0]]));
  glide((t) => {
    marker = Object.fromEntries(data.views.map((name) => [name, to[name].map((v, k) => from[name][k] + (v - from[name][k]) * t)]));
  });
}

function nearest(event) {
  if (!data) return null;
  const box = canvas.getBoundingClientRect();
  let best = null, least = REACH ** 2;
  for (const group of data.groups) {
    if (hidden.has(group.modality)) continue;
    for (let i = 0; i < group.ids.length; i += 1) {
      const [x, y] = onScreen(mixed(group.points, i), box);
      const away = (x - event.clientX + box.left) ** 2 + (y - event.clientY + box.top) ** 2;
      if (away < least) { least = away; best = { group, i, x, y }; }
    }
  }
  return best;
}

function hover(found) {
  hovered = found;
  tip.hidden = !found;
  canvas.style.cursor = found ? 'pointer' : 'grab';
  if (found) {
    const { group, i, x, y } = found;
    tip.replaceChildren();
    if (group.modality === 'image') {
      const picture = document.createElement('img');
      picture.src = data.base + encodeURI(group.files[i]).replace(/[#?]/g, encodeURIComponent);
      picture.alt = '';
      tip.append(picture);
    }
    tip.append(Object.assign(document.createElement('span'), { textContent: group.names[i] }));
    tip.append(Object.assign(document.createElement('small'), { textContent: data.nouns[group.modality] }));
    const box = canvas.getBoundingClientRect();
    tip.style.left = `${Math.max(0, Math.min(x + 14, box.width - 170))}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 14, box.height - (group.modality === 'image' ? 170 : 64)))}px`;
  }
  draw();
}

function move(dx, dy) { frame.x -= dx / frame.zoom; frame.y += dy / frame.zoom; draw(); }
function zoom(by) { frame.zoom = Math.max(0.8, Math.min(frame.zoom * by, 40)); draw(); }

let dragged = null;
canvas.addEventListener('pointerdown', (event) => {
  dragged = { x: event.clientX, y: event.clientY, far: 0 };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener('pointermove', (event) => {
  if (!dragged) { hover(nearest(event)); return; }
  const box = canvas.getBoundingClientRect();
  const [dx, dy] = [event.clientX - dragged.x, event.clientY - dragged.y];
  dragged = { x: event.clientX, y: event.clientY, far: dragged.far + Math.abs(dx) + Math.abs(dy) };
  move(dx / (0.47 * box.width), dy / (0.46 * box.height));
});
canvas.addEventListener('pointerup', (event) => {
  const clicked = dragged && dragged.far < 5;
  dragged = null;
  if (!clicked) return;
  const found = nearest(event);
  hover(found);
  if (found) trigger('select', { modality: found.group.modality, id: found.group.ids[found.i] });
});
canvas.addEventListener('pointercancel', () => { dragged = null; });
canvas.addEventListener('pointerleave', () => { if (!dragged) hover(null); });
canvas.addEventListener('wheel', (event) => {
  if (!event.ctrlKey && document.activeElement !== canvas) return; // the page scrolls until the map is chosen
  event.preventDefault();
  zoom(Math.exp(-event.deltaY / 400));
}, { passive: false });
canvas.addEventListener('keydown', (event) => {
  const keys = {
    ArrowLeft: () => move(0.1, 0), ArrowRight: () => move(-0.1, 0), ArrowUp: () => move(0, 0.1),
    ArrowDown: () => move(0, -0.1), '+': () => zoom(1.3), '=': () => zoom(1.3), '-': () => zoom(1 / 1.3),
    0: () => { frame = { zoom: 1, x: 0, y: 0 }; draw(); },
  };
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
element.addEventListener('click', (event) => {
  const button = event.target.closest('button');
  if (!button) return;
  if (button.dataset.zoom) zoom(Number(button.dataset.zoom));
  if (button.dataset.reset) { frame = { zoom: 1, x: 0, y: 0 }; draw(); }
  if (button.dataset.modality) {
    const off = !hidden.delete(button.dataset.modality);
    if (off) hidden.add(button.dataset.modality);
    button.setAttribute('aria-pressed', String(!off));
    hover(null);
  }
  if (button.dataset.view) {
    view = button.dataset.view;
    element.querySelectorAll('[data-view]').forEach((b) => b.setAttribute('aria-pressed', String(b === button)));
    const [from, to] = [blend, data ? data.views.indexOf(view) : 0];
    glide((t) => { blend = from + (to - from) * t; });
  }
});

let asked = false;
new IntersectionObserver(async (entries) => {
  if (!entries.some((entry) => entry.isIntersecting)) return;
  draw();
  if (asked) return;
  asked = true;
  try {
    data = await server.points();
    element.querySelector('.fm-map-note').textContent = data.note;
    canvas.dataset.ready = 'true';
  } catch {
    asked = false;
    element.querySelector('.fm-map-note').textContent = 'The map did not load; please open the tab again.';
  }
  draw();
  land();
}).observe(canvas);
new ResizeObserver(draw).observe(canvas);
new MutationObserver(draw).observe(document.body, { attributes: true, attributeFilter: ['class'] });
watch('value', land);
