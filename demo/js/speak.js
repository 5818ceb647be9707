() => {
  // Presses the record button of the sound field, or stop if it is recording.
  const field = document.querySelector('#fm-sound');
  const press = (name) => [...field.querySelectorAll('button')].find((button) => {
    const label = `${button.getAttribute('aria-label') ?? ''} ${button.title} ${button.textContent}`;
    return button.offsetParent !== null && name.test(label);
  });
  const stop = press(/\bstop\b/i);
  if (stop) { stop.click(); return; }
  press(/\bclear\b/i)?.click();
  setTimeout(() => {
    press(/record audio|microphone/i)?.click();
    setTimeout(() => press(/\brecord\b/i)?.click(), 50);
  }, 50);
  field.scrollIntoView({ behavior: 'smooth', block: 'nearest' });
}
