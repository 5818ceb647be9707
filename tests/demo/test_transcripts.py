"""Words in a sound, as shown on the page: remarks, repetitions, doubt; real speech and real sounds."""

import shutil
import subprocess
from pathlib import Path

import pytest

from demo.transcripts import FOREIGN, UNSURE, SpokenWords, sentences, spoken_words
from fusemix.encoders import load_encoder
from fusemix.encoders.speech import Transcript
from fusemix.search.transcripts import SURE, only_words

ROOT = Path(__file__).resolve().parents[2]
GERMAN = ("Ein Hund läuft über die grüne Wiese", "Die Katze schläft auf dem Sofa", "Wo ist bitte der Bahnhof")


@pytest.mark.parametrize(
    ("transcript", "words"),
    [
        ("[BLANK_AUDIO]", ""),
        ("(crow caws) Hello. [Music]", "Hello."),
        ("A Red Racing Car, a Red Racing Car, a Red", "A Red Racing Car"),
        ("a boat on the water. a boat", "a boat on the water."),
        ("a man and a dog", "a man and a dog"),
        ("A woman crouches in a field. A woman crou", "A woman crouches in a field."),
        ("The people squat. 3 people squat by it. 3 people squat by", "The people squat. 3 people squat by it."),
        ("Mountain climbing gear on a mountain Mountain climbing gear", "Mountain climbing gear on a mountain"),
        ("The dog and the cat. The cat and the dog.", "The dog and the cat. The cat and the dog."),
        ("a big big dog", "a big big dog"),
        ("no no no", "no"),
        ("a dog, a cat, a dog", "a dog, a cat"),
        ("", ""),
        ("(upbeat music) (upbeat", ""),
        ("Thank you. [MUS", "Thank you."),
        ("[ [ [ [ [", ""),
        ("( * * * * * *", ""),
        ("*squeaking* Hello", "Hello"),
        ("*wh sh* *wh sh", ""),
        ("... - !", ""),
        ("7", "7"),
    ],
)
def test_remarks_and_repetitions_are_no_words(transcript, words):
    assert only_words(transcript) == words


def test_words_are_told_as_far_as_whisper_was_sure():
    assert spoken_words(Transcript("a dog (barks)", SURE)) == SpokenWords("a dog")
    assert spoken_words(Transcript("a dog", SURE - 0.01)) == SpokenWords(doubt=UNSURE, uncertain="a dog")
    assert spoken_words(Transcript("(barks)", -3.0)) == spoken_words(Transcript("", 0.0)) == SpokenWords()
    for remark in ("(speaking in foreign language)", "[Foreign language"):
        assert spoken_words(Transcript(remark, -0.5)) == SpokenWords(doubt=FOREIGN)
    assert spoken_words(Transcript("a dog (foreign language)", -0.5)) == SpokenWords("a dog")


def test_lines_for_the_page_are_short_and_none_where_there_is_nothing_to_tell():
    assert sentences("", "") == []
    assert sentences("a dog", "") == ["Words heard: “a dog”"]
    assert sentences("", UNSURE) == [UNSURE]
    (line,) = sentences("a boat on the water " * 500, "")
    assert len(line) < 250 and line.endswith(" …”")


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed: apt-get install espeak-ng")
def test_real_speech_is_told_and_german_and_the_gallerys_sounds_hardly_ever(tmp_path):
    encoder = load_encoder("whisper-tiny.en-words")
    for name, words in (("dog", "dog running on the grass"), ("boat", "sailing boat"), ("cake", "birthday cake")):
        assert words in spoken_words(encoder.transcribe(str(ROOT / f"demo/examples/spoken-{name}.mp3"))).words.lower()
    for number, german in enumerate(GERMAN):
        path = tmp_path / f"{number}.wav"
        subprocess.run(["espeak-ng", "-v", "de", "-w", path, german], check=True)
        heard = spoken_words(encoder.transcribe(str(path)))
        assert heard.words == "" and heard.doubt in (UNSURE, FOREIGN)
    sounds = sorted((ROOT / "demo/gallery").rglob("*.mp3"))[::12]
    assert len(sounds) > 20
    claimed = [
        heard.words for heard in (spoken_words(encoder.transcribe(str(sound))) for sound in sounds) if heard.words
    ]
    assert len(claimed) <= len(sounds) // 20, claimed
