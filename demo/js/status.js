// Runs once, in the status line: the button that copies the link to this search.
element.addEventListener('click', async (event) => {
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
