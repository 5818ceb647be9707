() => {
  // Presses the record button of the sound field, or stop if it is recording; says so where nothing can be recorded.
  // After somebody spoke, a pause ends the recording.
  const PAUSE_MS = 1500;
  const SPOKEN_MS = 300; // of sound, before a pause counts
  const LOUD = 4; // times the quietest moment
  const LEAST = 0.012; // of full scale
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
  const meter = (stream) => { // returns how loud it is now, 0 to 1 (RMS)
    const context = new AudioContext();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    return () => {
      analyser.getFloatTimeDomainData(samples);
      return Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length);
    };
  };
  if (stop()) { stop().click(); return; }
  say('');
  (async () => {
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: true });
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
    const level = meter(stream);
    let begun = false;
    let waited = 0;
    let quietest = Infinity;
    let spoken = 0;
    let silent = 0;
    const watch = setInterval(() => {
      const recording = Boolean(stop());
      begun ||= recording;
      waited += 1;
      show(recording);
      if (recording) {
        const now = level();
        quietest = Math.min(quietest, now);
        if (now > Math.max(LEAST, LOUD * quietest)) { spoken += 100; silent = 0; } else { silent += 100; }
        if (spoken >= SPOKEN_MS && silent >= PAUSE_MS) stop().click();
      }
      if ((begun && !recording) || (!begun && waited > 50)) {
        clearInterval(watch);
        show(false);
        stream.getTracks().forEach((track) => track.stop());
      }
    }, 100);
  })();
}
