// Runs once, in the map: fetches the points when the map is first seen, draws them, follows the query.
const canvas = element.querySelector('canvas');
const tip = element.querySelector('.fm-tip');
const pen = canvas.getContext('2d');
const GLIDE_MS = 700;
const REACH = 12; // pixels from the pointer within which a dot is found
const RADIUS = { image: 1.9, text: 1.9, audio: 3.2 };
const TILE = () => (canvas.clientWidth > 700 ? 44 : 34); // pixels of a thumbnail, before zooming in
let data = null; // { views, groups: [{ modality, points: { view: [[x, y]] }, names, files, ids, cells }], sheet, notes }
let view = null; // the view shown
let former = null; // the view it glides from
let blend = 1; // 0: the former view, 1: the one shown; in between while they glide
let sheet = null; // all thumbnails in one picture
const fingers = new Map();
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

function mixed(places, i) { // null: it has no place in this view
  const [a, b] = [former, view].map((name) => (i === undefined ? places[name] : places[name][i]));
  if (!a || !b) return blend === 1 ? b : null;
  return [a[0] + (b[0] - a[0]) * blend, a[1] + (b[1] - a[1]) * blend];
}

function draw() {
  const box = size();
  pen.clearRect(0, 0, box.width, box.height);
  if (!data || !box.width) return;
  const tiles = sheet && former === view && view === data.views[0];
  for (const group of data.groups) {
    if (hidden.has(group.modality)) continue;
    pen.fillStyle = colour(group.modality);
    pen.globalAlpha = group.modality === 'audio' ? 0.9 : 0.5;
    const radius = RADIUS[group.modality] * Math.sqrt(Math.min(frame.zoom, 6));
    if (tiles && group.cells) { drawTiles(group, box); continue; }
    for (let i = 0; i < group.ids.length; i += 1) {
      const place = mixed(group.points, i);
      if (!place) continue;
      const [x, y] = onScreen(place, box);
      if (x < -9 || y < -9 || x > box.width + 9 || y > box.height + 9) continue;
      pen.beginPath();
      pen.arc(x, y, radius, 0, 7);
      pen.fill();
    }
  }
  pen.globalAlpha = 1;
  drawQuery(box);
  const place = hovered && mixed(hovered.group.points, hovered.i);
  if (place) ring(onScreen(place, box), tiles ? tileSize() / 2 + 3 : 7, colour('ink'), 2);
}

const tileSize = () => TILE() * Math.min(Math.sqrt(frame.zoom), 2.2);

// Thumbnails where there is room, dots for the rest; zooming in makes room.
function drawTiles(group, box) {
  const size = tileSize();
  const { side, columns } = data.sheet;
  const taken = new Set();
  shown.clear();
  near.clear();
  for (let i = 0; i < group.ids.length; i += 1) {
    const [x, y] = onScreen(group.points[view][i] ?? [9, 9], box);
    if (x < -size || y < -size || x > box.width + size || y > box.height + size) continue;
    const [column, row] = [Math.round(x / size), Math.round(y / size)];
    let free = group.cells[i] >= 0;
    for (let dx = -1; free && dx <= 1; dx += 1) {
      for (let dy = -1; free && dy <= 1; dy += 1) {
        const other = near.get(`${column + dx},${row + dy}`);
        free = !taken.has(`${column + dx},${row + dy}`) || Math.max(Math.abs(other[0] - x), Math.abs(other[1] - y)) >= size;
      }
    }
    if (!free) { pen.beginPath(); pen.arc(x, y, 1.6, 0, 7); pen.fill(); continue; }
    taken.add(`${column},${row}`);
    near.set(`${column},${row}`, [x, y]);
    shown.add(i);
    pen.globalAlpha = 1;
    const [sx, sy] = [(group.cells[i] % columns) * side, Math.floor(group.cells[i] / columns) * side];
    pen.drawImage(sheet, sx, sy, side, side, x - size / 2, y - size / 2, size, size);
    pen.globalAlpha = 0.5;
  }
}
const near = new Map();
const shown = new Set(); // pictures drawn as thumbnails, which a finger finds more easily

function drawQuery(box) {
  if (!marker || !props.value) return;
  const [x, y] = onScreen(mixed(marker), box);
  pen.strokeStyle = colour('ink');
  for (const [modality, i] of (sheet && view === data.views[0] ? props.value.things : props.value.hits)) {
    const group = data.groups.find((entry) => entry.modality === modality);
    if (!group || hidden.has(modality)) continue;
    const place = mixed(group.points, i);
    if (!place) continue;
    const [hx, hy] = onScreen(place, box);
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
  if (view === data.views[0] && sheet && frame.zoom > 1) frame = { ...frame, x: to[view][0], y: to[view][1] };
  glide((t) => {
    marker = Object.fromEntries(data.views.map((name) => [name, to[name].map((v, k) => from[name][k] + (v - from[name][k]) * t)]));
  });
}

function nearest(event) {
  if (!data) return null;
  const box = canvas.getBoundingClientRect();
  const tiles = sheet && view === data.views[0];
  let best = null, least = Infinity;
  for (const group of data.groups) {
    if (hidden.has(group.modality)) continue;
    for (let i = 0; i < group.ids.length; i += 1) {
      const place = mixed(group.points, i);
      if (!place) continue;
      const [x, y] = onScreen(place, box);
      const reach = tiles && group.cells ? (shown.has(i) ? tileSize() / 2 : 4) : REACH;
      const away = Math.hypot(x - event.clientX + box.left, y - event.clientY + box.top) / reach;
      if (away < Math.min(least, 1.2)) { least = away; best = { group, i, x, y }; }
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

function pinch() { // two fingers: zoom by how far they part
  const [a, b] = [...fingers.values()];
  return Math.hypot(a.x - b.x, a.y - b.y);
}

function move(dx, dy) { frame.x -= dx / frame.zoom; frame.y += dy / frame.zoom; draw(); }
function zoom(by) { frame.zoom = Math.max(0.8, Math.min(frame.zoom * by, 40)); draw(); }

let dragged = null;
canvas.addEventListener('pointerdown', (event) => {
  fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  dragged = { x: event.clientX, y: event.clientY, far: 0 };
  canvas.setPointerCapture(event.pointerId);
});
canvas.addEventListener('pointermove', (event) => {
  if (fingers.size === 2 && fingers.has(event.pointerId)) {
    const before = pinch();
    fingers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    zoom(pinch() / Math.max(before, 1));
    dragged = { x: event.clientX, y: event.clientY, far: 99 };
    return;
  }
  if (!dragged) { hover(nearest(event)); return; }
  const box = canvas.getBoundingClientRect();
  const [dx, dy] = [event.clientX - dragged.x, event.clientY - dragged.y];
  dragged = { x: event.clientX, y: event.clientY, far: dragged.far + Math.abs(dx) + Math.abs(dy) };
  move(dx / (0.47 * box.width), dy / (0.46 * box.height));
});
canvas.addEventListener('pointerup', (event) => {
  fingers.delete(event.pointerId);
  const clicked = dragged && dragged.far < 5;
  dragged = null;
  if (!clicked) return;
  const found = nearest(event);
  hover(found);
  if (found) trigger('select', { modality: found.group.modality, id: found.group.ids[found.i] });
});
canvas.addEventListener('pointercancel', (event) => { fingers.delete(event.pointerId); dragged = null; });
canvas.addEventListener('pointerleave', (event) => { // what a finger tapped stays to be seen
  if (!dragged && event.pointerType === 'mouse') hover(null);
});
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
    [former, view] = [view, button.dataset.view];
    element.querySelectorAll('[data-view]').forEach((b) => b.setAttribute('aria-pressed', String(b === button)));
    if (data) element.querySelector('.fm-map-note').textContent = data.notes[view];
    glide((t) => { blend = t; if (t === 1) former = view; });
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
    view = former = view ?? data.views[0];
    element.querySelector('.fm-map-note').textContent = data.notes[view];
    if (data.sheet) {
      const picture = new Image();
      picture.onload = () => { sheet = picture; draw(); };
      picture.src = data.sheet.url;
    }
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
