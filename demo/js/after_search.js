() => {
  const box = document.querySelector('#fm-status');
  const line = box.querySelector('.fm-status');
  const results = document.querySelector('#fm-results');
  const view = results.dataset.view ?? 'items';
  results.querySelectorAll('.fm-view').forEach((button) => {
    button.setAttribute('aria-pressed', String(button.dataset.view === view));
  });
  if (!line) return;
  // The time as the visitor felt it: from the click to now, the way over the network included.
  const felt = line.querySelector('.fm-felt');
  if (felt && window.fmAsked) felt.textContent = `, shown after ${((performance.now() - window.fmAsked) / 1000).toFixed(2)} s`;
  window.fmAsked = null;
  if (window.fmTyping) return; // results that follow the typing change nothing else
  if (matchMedia('(pointer: coarse)').matches) document.activeElement?.blur(); // puts the keyboard of a phone away
  document.querySelector('#fm-fields').classList.toggle('fm-open', box.querySelector('.fm-line')?.dataset.files === 'yes');
  // The address reproduces the search, for a reload, for the link, and for the way back.
  const link = new URLSearchParams(box.querySelector('.fm-copy')?.dataset.link ?? '');
  const theme = new URLSearchParams(location.search).get('__theme');
  if (theme) link.set('__theme', theme);
  const address = link.size ? `?${link}` : location.pathname;
  const here = new URLSearchParams(location.search);
  if (here.toString() !== link.toString()) history.pushState(history.state, '', address);
  // On a phone, and after "more like this", the answer may lie outside the window.
  const { top, bottom } = line.getBoundingClientRect();
  const smooth = matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth';
  const visible = line.offsetParent !== null;
  if (visible && (top < 0 || bottom > 0.8 * innerHeight)) line.scrollIntoView({ behavior: smooth, block: 'start' });
}
