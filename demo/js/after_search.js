() => {
  const box = document.querySelector('#fm-status');
  const line = box.querySelector('.fm-status');
  if (!line) return;
  // The time as the visitor felt it: from the click to now, the way over the network included.
  const felt = line.querySelector('.fm-felt');
  if (felt && window.fmAsked) felt.textContent = `, ${Math.round(performance.now() - window.fmAsked)} ms until here`;
  window.fmAsked = null;
  // The address reproduces the search, for a reload and for the link.
  const link = new URLSearchParams(box.querySelector('.fm-copy')?.dataset.link ?? '');
  const theme = new URLSearchParams(location.search).get('__theme');
  if (theme) link.set('__theme', theme);
  history.replaceState(history.state, '', link.size ? `?${link}` : location.pathname);
  // On a phone, and after "more like this", the answer may lie outside the window.
  const { top, bottom } = line.getBoundingClientRect();
  const smooth = matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth';
  const visible = line.offsetParent !== null;
  if (visible && (top < 0 || bottom > 0.8 * innerHeight)) line.scrollIntoView({ behavior: smooth, block: 'start' });
}
