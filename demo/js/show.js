() => {
  // Unfolds, or folds away, the fields for a picture and a sound, and the mix.
  const fields = document.querySelector('#fm-fields');
  const open = fields.classList.toggle('fm-open');
  if (open) fields.scrollIntoView({ behavior: 'smooth', block: 'nearest' });
}
