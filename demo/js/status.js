// Runs once, in the status line: the link's button, the words heard and how they are corrected, Back, and typing.
const FOLLOW_MS = 250;

element.addEventListener('click', async (event) => {
  const meant = event.target.closest('.fm-meant');
  if (meant) trigger('select', { modality: 'words', id: meant.textContent });
  const undo = event.target.closest('.fm-undo');
  if (undo) trigger('select', { modality: undo.dataset.modality, id: undo.dataset.id });
  const button = event.target.closest('.fm-copy');
  if (!button) return;
  const link = new URL(button.dataset.link, location.origin + location.pathname).href;
  try {
    await navigator.clipboard.writeText(link);
    button.textContent = 'Link copied';
  } catch {
    prompt('Copy this link', link); // no clipboard here: a frame without permission, or plain http
  }
});
element.addEventListener('submit', (event) => {
  event.preventDefault();
  const words = event.target.querySelector('input').value.trim();
  if (words) trigger('select', { modality: 'words', id: words });
});
// Back and forward: the address says what was searched then.
addEventListener('popstate', () => trigger('select', { modality: 'link', id: location.search }));
// A link opens its tab, and the address names the tab that is open.
document.addEventListener('click', (event) => {
  const tab = event.target.closest('[role=tab]');
  if (!tab) return;
  const address = new URL(location.href);
  address.searchParams.delete('tab');
  if (tab.textContent.trim() !== 'Search') address.searchParams.set('tab', tab.textContent.trim());
  history.replaceState(history.state, '', address);
});
const wanted = new URLSearchParams(location.search).get('tab');
[...document.querySelectorAll('[role=tab]')].find((tab) => tab.textContent.trim() === wanted)?.click();
// Results follow the typing: once the fingers rest, the hidden button is pressed.
let resting;
document.addEventListener('input', (event) => {
  if (!event.target.closest('#fm-words')) return;
  clearTimeout(resting);
  resting = setTimeout(() => document.querySelector('#fm-follow')?.click(), FOLLOW_MS);
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && event.target.closest('#fm-words')) clearTimeout(resting);
});
