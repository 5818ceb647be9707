() => {
  // Presses the record button of the sound field, or stop if it is recording; says so where nothing can be recorded.
  const field = document.querySelector('#fm-sound');
  const button = document.querySelector('#fm-speak');
  const notice = document.querySelector('#fm-notice');
  const find = (name) => [...field.querySelectorAll('button')].find((candidate) => {
    const label = `${candidate.getAttribute('aria-label') ?? ''} ${candidate.title} ${candidate.textContent}`;
    return candidate.offsetParent !== null && name.test(label);
  });
  const stop = () => find(/\bstop\b/i);
  const say = (sentence) => { notice.textContent = sentence; notice.hidden = !sentence; };
  const show = (recording) => {
    button.classList.toggle('fm-recording', recording);
    if (recording) button.setAttribute('aria-label', 'Stop recording');
    else button.removeAttribute('aria-label');
  };
  if (stop()) { stop().click(); return; }
  say('');
  (async () => {
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
      stream.getTracks().forEach((track) => track.stop());
    } catch (error) {
      const denied = error?.name === 'NotAllowedError';
      say(denied ? 'The microphone is blocked for this page; allow it in the browser, or type your words.'
        : 'No microphone was found; type your words, or upload a sound file.');
      return;
    }
    document.querySelector('#fm-fields').classList.add('fm-open');
    await new Promise((done) => { setTimeout(done, 50); });
    find(/\bclear\b/i)?.click();
    setTimeout(() => {
      find(/record audio|microphone/i)?.click();
      setTimeout(() => find(/\brecord\b/i)?.click(), 50);
    }, 50);
    let begun = false;
    let waited = 0;
    const watch = setInterval(() => {
      const recording = Boolean(stop());
      begun ||= recording;
      waited += 1;
      show(recording);
      if ((begun && !recording) || (!begun && waited > 25)) { clearInterval(watch); show(false); }
    }, 200);
  })();
}
