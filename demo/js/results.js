// Runs once, in the results: forwards clicks and filters, shows more on scrolling, saves hits, plays the reel.
const MORE = 12;
const CHANGE_MS = 5000;
const LETTER_MS = 45;

element.addEventListener('click', (event) => {
  const button = event.target.closest('.fm-more, .fm-vote');
  if (button) trigger('select', { modality: button.dataset.modality, id: button.dataset.id });
  const view = event.target.closest('.fm-view');
  if (view) {
    element.closest('#fm-results').dataset.view = view.dataset.view;
    element.querySelectorAll('.fm-view').forEach((b) => b.setAttribute('aria-pressed', String(b === view)));
  }
  if (event.target.closest('.fm-scroll-on')) showMore();
  const save = event.target.closest('.fm-save');
  if (save) download(save.dataset.kind, JSON.parse(save.closest('.fm-tools').dataset.hits));
  if (event.target.closest('.fm-next')) show(current() + 1);
  const pause = event.target.closest('.fm-pause');
  if (pause) pause.setAttribute('aria-pressed', String(pause.getAttribute('aria-pressed') !== 'true'));
});
element.addEventListener('change', (event) => {
  const key = event.target.dataset?.key;
  if (key) trigger('select', { modality: 'where', id: `${key}=${event.target.value}` });
});

function showMore() {
  const later = [...element.querySelectorAll('.fm-together li[hidden]')];
  later.slice(0, MORE).forEach((item) => { item.hidden = false; });
  if (later.length <= MORE) element.querySelector('.fm-scroll-on')?.remove();
}

// What lies below comes as one scrolls there; the button is for keyboards.
const below = new IntersectionObserver((entries) => {
  if (entries.some((entry) => entry.isIntersecting) && window.scrollY > 100) showMore();
}, { rootMargin: '0px 0px 200px' });
new MutationObserver(() => {
  below.disconnect();
  const button = element.querySelector('.fm-scroll-on');
  if (button) below.observe(button);
}).observe(element, { childList: true, subtree: true });

function download(kind, hits) {
  const quoted = (value) => {
    const text = String(value);
    return `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`; // no formula in a spreadsheet
  };
  const rows = [Object.keys(hits[0] ?? {}), ...hits.map(Object.values)].map((row) => row.map(quoted).join(','));
  const text = kind === 'csv' ? `${rows.join('\r\n')}\r\n` : JSON.stringify(hits, null, 2);
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], { type: kind === 'csv' ? 'text/csv' : 'application/json' }));
  link.download = `fusemix-hits.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

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
