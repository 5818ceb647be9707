// Runs once, in the results: forwards clicks on items, keeps one sound at a time, plays the reel of examples.
const CHANGE_MS = 5000;
const LETTER_MS = 45;

element.addEventListener('click', (event) => {
  const button = event.target.closest('.fm-more');
  if (button) trigger('select', { modality: button.dataset.modality, id: button.dataset.id });
  const view = event.target.closest('.fm-view');
  if (view) {
    element.closest('#fm-results').dataset.view = view.dataset.view;
    element.querySelectorAll('.fm-view').forEach((b) => b.setAttribute('aria-pressed', String(b === view)));
  }
  if (event.target.closest('.fm-next')) show(current() + 1);
  const pause = event.target.closest('.fm-pause');
  if (pause) pause.setAttribute('aria-pressed', String(pause.getAttribute('aria-pressed') !== 'true'));
});
element.addEventListener('play', (event) => {
  element.querySelectorAll('audio').forEach((audio) => { if (audio !== event.target) audio.pause(); });
}, true);

const slides = () => [...element.querySelectorAll('.fm-slide')];
const current = () => slides().findIndex((slide) => !slide.hidden);
const still = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

function show(number) {
  const all = slides();
  if (!all.length) return;
  all.forEach((slide, i) => { slide.hidden = i !== number % all.length; });
  const asked = all[number % all.length].querySelector('.fm-typed');
  if (!asked || still()) return;
  // Letters appear one by one, as if somebody typed; the button's label always says it whole.
  const words = asked.dataset.words;
  let shown = 0;
  const typing = setInterval(() => {
    asked.textContent = words.slice(0, ++shown);
    if (shown >= words.length || !asked.isConnected) { asked.textContent = words; clearInterval(typing); }
  }, LETTER_MS);
}

const reel = setInterval(() => {
  const box = element.querySelector('.fm-reel');
  if (!box) { clearInterval(reel); return; }
  const paused = box.querySelector('.fm-pause').getAttribute('aria-pressed') === 'true';
  if (!paused && !still() && !box.matches(':hover, :focus-within') && !document.hidden) show(current() + 1);
}, CHANGE_MS);

// The page is shown once its height rests (demo/ui.py hides it until then).
const page = document.querySelector('.gradio-container');
let height = 0;
const rest = setInterval(() => {
  if (page.scrollHeight === height) {
    document.documentElement.classList.add('fm-ready');
    clearInterval(rest);
  }
  height = page.scrollHeight;
}, 150);
