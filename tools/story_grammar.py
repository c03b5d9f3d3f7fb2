"""Little stories in plain English, made up by a grammar: `tools/train_small_model.py` reads them.

    python tools/story_grammar.py [NUMBER]

prints some. A story has a hero, a friend, a plot (something is lost, breaks, is wished for, ...)
and an end; names, pronouns and things stay the same from its first sentence to its last. A plot is
a row of slots, a slot the sentences that may stand there: in braces is what the story has chosen
once (`Facts`). Some stories are answers to a question; of what no story tells, the answer says so.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Iterator

EOS, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
"""Ends a story; begins and ends what somebody says. As SmolLM2 has them."""


def _words(text: str) -> list[str]:
    return text.split()


GIRLS = _words("Mia Anna Lily Nora Emma Rosa Ella Ida Clara Sophie")
BOYS = _words("Tom Ben Max Leo Sam Paul Finn Otto Jack Oscar")
PETS = {"she": _words("Molly Daisy Coco Minnie Luna"), "he": _words("Pip Bruno Rufus Toby Rex")}
GROWN = {
    "baker": "she", "farmer": "he", "fisherman": "he", "gardener": "she", "teacher": "she",
    "king": "he", "queen": "she", "sailor": "he", "grandmother": "she", "grandfather": "he",
    "princess": "she", "prince": "he", "wizard": "he", "giant": "he", "man": "he", "woman": "she",
}  # fmt: skip
FOODS_OF = {
    "cat": "milk and a warm bed", "dog": "bones and long walks", "fox": "berries and the dark wood",
    "bear": "honey and a long sleep", "rabbit": "carrots and green grass",
    "mouse": "cheese and small holes", "duck": "bread and the pond", "frog": "flies and the rain",
    "owl": "the night and old trees", "horse": "apples and the wind",
    "hen": "corn and a quiet nest", "hedgehog": "worms and dry leaves",
    "squirrel": "nuts and tall trees", "goat": "grass and high hills", "pig": "mud and potatoes",
    "bird": "seeds and the morning sun", "turtle": "salad and slow days",
    "wolf": "meat and the full moon", "lion": "meat and the hot sun",
    "elephant": "leaves and cool water", "dragon": "gold and a big fire",
    "monkey": "bananas and high branches", "cow": "grass and a quiet day",
    "sheep": "grass and green hills", "robot": "oil and hard work",
    "kitten": "milk and soft wool", "puppy": "bones and old shoes",
    "bee": "flowers and warm days", "fish": "cool water and small flies",
}  # fmt: skip
ANIMALS = tuple(FOODS_OF)
HOMES = {
    "cat": "in a house", "dog": "on a farm", "fox": "in the wood", "bear": "in a cave",
    "rabbit": "under the ground", "mouse": "in a hole in the wall", "duck": "on the pond",
    "frog": "by the pond", "owl": "in an old tree", "horse": "on a farm", "hen": "on a farm",
    "hedgehog": "under the leaves", "squirrel": "in a tall tree", "goat": "on the hill",
    "pig": "on a farm", "bird": "in a nest", "turtle": "by the river", "wolf": "in the wood",
    "lion": "in the grass", "elephant": "by the river", "dragon": "in a cave",
    "monkey": "in a tall tree", "cow": "on a farm", "sheep": "on the hill",
    "robot": "in a house", "kitten": "in a house", "puppy": "on a farm",
    "bee": "in a garden", "fish": "in the river",
}  # fmt: skip
SYLLABLES = _words("ba be da do fi ga jo ka ki la le lo ma mi na no pa ra ri sa se ta to vi wa zu")
"""Of names that nobody has: the model is to take up whatever name its reader writes."""
ADJECTIVES = _words("little small brave old kind clever quiet happy young funny")
PLACES = (
    "the wood", "the garden", "the river", "the sea", "the village", "the market", "the hill",
    "the pond", "the farm", "the old mill", "the beach", "the park",
)  # fmt: skip
HOUSES = (
    "in a small house by the sea", "in a village near the wood", "on a farm on the hill",
    "at the end of a long road", "in a town by the river", "near an old bridge",
)  # fmt: skip
THINGS = _words("ball hat key kite drum book bell boat lamp ring spoon scarf")
COLOURS = _words("red blue green yellow white black")
SPOTS = (
    "under the bed", "behind the door", "in the tall grass", "in a tree", "under the table",
    "on the roof", "in the well", "under a stone", "in the kitchen", "behind the house",
)  # fmt: skip
FOODS = _words("cake bread soup milk rice cheese honey pie")
WISHES = {
    "see the sea": "The sea was big and blue, and {hero} could not stop looking.",
    "learn to swim": "The water was cold, but soon {hero} swam from one side to the other.",
    "bake a cake": "The cake was brown and sweet, and the whole house smelled of sugar.",
    "sing a song": "{hero} sang so well that the birds in the trees were quiet and listened.",
    "touch the snow": "The snow was soft and cold, and it shone like glass.",
    "see the stars": "There were so many stars that nobody could count them.",
    "build a boat": "The boat was small, but it was dry inside, and it did not sink.",
    "climb the hill": "From the top of the hill {hero} could see all the roofs of the village.",
}
FEARS = {
    "the dark": "The dark is only the day with its eyes closed",
    "the thunder": "The thunder is loud, but it is far away",
    "deep water": "The water is deep, but it can carry you",
    "high trees": "Look at the next branch, and not at the ground",
    "strangers": "A stranger is a friend whom you do not know yet",
}
NOISES = {
    "a knock": "a branch that the wind blew against the window",
    "a cry": "a small kitten that was cold",
    "a crash": "a pot that had fallen from the shelf",
    "a song": "a bird that could not sleep",
    "a scratch": "a hedgehog that looked for food",
}
TOOLS = _words("hammer rope nail needle brush pot")
BROKEN = {
    "the roof": "the rain came in", "the bridge": "nobody could cross the river",
    "the boat": "it was full of water", "the gate": "the sheep ran away",
    "the clock": "nobody knew the time", "the chair": "nobody could sit on it",
}  # fmt: skip
WEATHER = {
    "It was a sunny day": "the sun", "It was a rainy day": "the rain",
    "It was a windy day": "the wind", "It was a cold day": "the cold",
    "It was a foggy day": "the fog",
}  # fmt: skip
SEEDS = _words("flower apple tree pumpkin rose bean")

OPENINGS = (
    "Once upon a time there was {a_hero}.",
    "Once upon a time there was {a_hero} who lived {house}.",
    "Once upon a time, {house}, there lived {a_hero}.",
    "There once was {a_hero}.",
    "There was once {a_hero} who lived {house}.",
    "{a_hero} lived {house}.",
    "{hero} was {a_kind}. {He} lived {house}.",
    "One day {a_hero} woke up early.",
)
ALL_DAY = (
    "Every morning {he} went to {place} with {a_friend}.",
    "{His} best friend was {a_friend}.",
    "{He} liked {place} more than any other place.",
    "{hero} liked {food} and long walks to {place}.",
    "",
    "",
)
ENDINGS = (
    "That night {hero} slept very well.",
    "From that day on, {hero} and {friend} were the best of friends.",
    "And {hero} was happy.",
    "Then they went home together, and the moon came up over {place}.",
    "In the evening they sat by the fire and ate {food}.",
    "{hero} laughed, and {friend} laughed too.",
    "And if they have not moved away, they still live there today.",
    "It was the best day of the year.",
)

PLOTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "lost": (
        (
            "{hero} had {a_thing}. It was {his} favourite thing.",
            "{He} had {a_thing}, and {he} took it everywhere.",
            "For {his} birthday {hero} got {a_thing}.",
        ),
        (
            "One day the {thing} was gone.",
            "One morning {hero} could not find the {thing}.",
            "One day {hero} came home from {place}, and the {thing} was not there.",
        ),
        (
            "{He} looked {spot}, but it was not there. {He} looked {spot2}, but it was not there.",
            "{hero} looked {spot} and {spot2}. There was no {thing}.",
            "First {hero} looked {spot}. Then {he} looked {spot2}. {He} began to cry.",
        ),
        (
            '"Why are you sad?" asked {friend}. "I have lost my {thing}," said {hero}.',
            "{friend} saw that {hero} was sad and wanted to help.",
            '"Do not cry," said {friend}. "We will look for it together."',
        ),
        (
            "They looked for a long time. At last {friend} found the {thing} {spot3}.",
            "Then {friend} looked {spot3}, and there was the {thing}!",
            '"Did you look {spot3}?" asked {friend}. {hero} looked, and there it was.',
        ),
        (
            '"Thank you!" said {hero}. "You are a good friend."',
            "{hero} was so happy that {he} danced.",
            '{hero} gave {friend} some {food} and said, "Thank you."',
        ),
    ),
    "weather": (
        (
            "{weather}. {hero} wanted to go to {place} with {friend}.",
            "One day {hero} and {friend} wanted to walk to {place}. {weather}.",
        ),
        (
            "But on the way a big storm came, and the road was full of water.",
            "But soon dark clouds came over {place}, and it began to rain.",
            "Then the wind blew so hard that they could not walk.",
        ),
        (
            '"What shall we do now?" asked {hero}.',
            '"I am wet and cold," said {hero}.',
            "{hero} was angry with the weather.",
        ),
        (
            '"We can wait in the old mill," said {friend}.',
            "{friend} knew a small house where they could wait.",
            '"Come under this tree," said {friend}. "It is dry here."',
        ),
        (
            "They waited, told each other stories and shared some {food}.",
            "They made a fire and warmed their feet.",
            "They sang songs and counted the drops.",
        ),
        (
            "After an hour the sun came out again, and there was a rainbow over {place}.",
            "Then the storm was over, and the birds began to sing.",
        ),
    ),
    "friend": (
        (
            "{hero} had no friends, and {he} was often alone.",
            "{hero} was new there, and nobody played with {him}.",
        ),
        (
            "One day {he} went to {place}. There {he} met {a_friend}.",
            "One morning {he} walked to {place} and heard somebody cry. It was {a_friend}.",
        ),
        (
            '"I am hungry," said {friend}. "I have not eaten all day."',
            '"I do not know the way home," said {friend}.',
            '"My foot hurts," said {friend}. "I cannot walk."',
        ),
        (
            '"I will help you," said {hero}.',
            '"Do not be afraid," said {hero}. "Come with me."',
        ),
        (
            "{hero} took {friend} home and made some {food}.",
            "They went home slowly, and {hero} gave {friend} {food} and a warm bed.",
        ),
        (
            '"Will you be my friend?" asked {friend}. "Yes," said {hero}.',
            "The next day they played together from morning to night.",
        ),
    ),
    "wish": (
        (
            "{hero} had one wish: {he} wanted to {wish}.",
            "More than anything, {hero} wanted to {wish}.",
        ),
        (
            '"You are too small for that," said the others.',
            "But {he} did not know how.",
            "Every night {he} dreamed of it.",
        ),
        (
            'One day {he} told {friend}. "I can show you how," said {friend}.',
            '"Come with me," said {friend} one morning. "Today you will {wish}."',
        ),
        (
            "They walked to {place}, and they did not give up.",
            "They tried once, they tried twice, and they tried a third time.",
            "It was hard work, and it took all day.",
        ),
        ("{wish_true}",),
        (
            '"Now I am not too small any more," said {hero}.',
            "{hero} had never been so happy.",
            '"I did it!" said {hero}.',
        ),
    ),
    "broken": (
        (
            "One night {broken} broke, and {trouble}.",
            "One day there was a loud noise. {broken} was broken, and {trouble}.",
        ),
        (
            '"What shall we do?" asked {hero}. "I cannot mend it alone."',
            "{hero} tried to mend it, but {he} could not do it alone.",
        ),
        (
            'So {he} went to {friend}. "I have a {tool}," said {friend}. "That will help."',
            "{friend} came with a {tool} and a big smile.",
        ),
        (
            "They worked together all morning. {hero} held it, and {friend} used the {tool}.",
            "They worked until the sun went down.",
        ),
        (
            "Soon {broken} was as good as new.",
            "In the evening {broken} was better than before.",
        ),
        (
            '"Two can do more than one," said {friend}.',
            '{hero} gave {friend} some {food}. "Thank you for your help," {he} said.',
        ),
    ),
    "fear": (
        (
            "{hero} was afraid of {fear}.",
            "There was only one thing that {hero} did not like: {fear}.",
        ),
        (
            "One day {he} had to go to {place}, and {he} did not want to go.",
            "One evening {friend} asked {him} to come to {place}.",
        ),
        (
            '"I am afraid of {fear}," said {hero}.',
            "{hero} stood at the door and could not move.",
        ),
        ('"{comfort}," said {friend}. "And I am with you."',),
        (
            "{hero} held on to {friend} and took one small step, and then another.",
            "So they went together, step by step.",
        ),
        (
            "After a while {hero} was not afraid any more.",
            '"It was not so bad," said {hero}.',
        ),
    ),
    "sharing": (
        (
            "One day {hero} had some {food}. It smelled good.",
            "One day {hero} made {food} for lunch.",
        ),
        (
            "Then {a_friend} came by and looked at it.",
            'There was a knock at the door. "I am so hungry," said {friend}.',
        ),
        (
            "{hero} wanted to eat it alone. But then {he} thought again.",
            '"There is not much," said {hero}, "but we can share it."',
        ),
        (
            "{He} gave {friend} half of the {food}.",
            "So they sat down, and each had one half.",
        ),
        (
            "The next day {hero} had nothing to eat. Then {friend} came with {food2}.",
            "In the winter {hero} was hungry. Then {friend} came and brought {food2}.",
        ),
        (
            '"You shared with me," said {friend}, "and now I share with you."',
            "What you give comes back, thought {hero}.",
        ),
    ),
    "growing": (
        (
            "One day {hero} found a small seed and put it into the ground.",
            "{friend} gave {hero} a small seed. It was a {seed} seed.",
        ),
        (
            "{He} gave it water every morning. But nothing grew.",
            "Every day {he} looked at the place, but there was only black earth.",
        ),
        (
            '"It will never grow," said {hero}.',
            "{hero} was sad and wanted to give up.",
        ),
        (
            '"You have to wait," said {friend}. "Good things need time."',
            '"Give it water, and give it time," said {friend}.',
        ),
        (
            "Then, after a warm rain, a small green leaf came out of the ground.",
            "One morning in spring {hero} saw a green leaf.",
        ),
        (
            "In the summer it was the most beautiful {seed} in the village.",
            "It grew and grew, until it was a big {seed}.",
        ),
    ),
    "night": (
        (
            "One night {hero} lay in bed and heard {noise}.",
            "It was dark outside. Then there was {noise} at the door.",
        ),
        (
            '"Who is there?" asked {hero}. Nobody answered.',
            "{hero} pulled the blanket over {his} head.",
        ),
        (
            "Then {he} took a lamp and went to {friend}.",
            "{He} woke {friend}, and they took a lamp.",
        ),
        (
            "Together they opened the door, very slowly.",
            "They looked {spot}. They looked {spot2}. There was nobody.",
        ),
        (
            "It was only {source}!",
            "And what was it? It was {source}.",
        ),
        (
            "They both laughed, and they went back to bed.",
            '"There is nothing to be afraid of," said {friend}.',
        ),
    ),
    "gift": (
        (
            "It was the birthday of {friend}, and {hero} had no present.",
            "Tomorrow was the birthday of {friend}.",
        ),
        (
            "{hero} had no money. {He} sat down and thought.",
            "{He} went to the market, but everything there cost too much.",
        ),
        (
            '"I will make something," said {hero}.',
            "Then {he} had an idea.",
        ),
        (
            "{He} worked all night and made {a_thing}.",
            "{He} took some wood and some paint, and {he} made {a_thing}.",
        ),
        (
            'In the morning {he} went to {friend} and said, "This is for you."',
            "The next day {hero} put it on the table.",
        ),
        (
            '"A {thing}!" said {friend}. "It is the best present of all."',
            '{friend} was very happy. "You made it yourself!"',
        ),
    ),
    "race": (
        (
            '"I am faster than you," said {friend} one day.',
            "One day there was a race from {place} to {place2}.",
        ),
        (
            "{hero} was not fast, but {he} did not want to lose.",
            '"We shall see," said {hero}.',
        ),
        (
            "They ran. {friend} was far ahead, and soon {he} could not see {friend} any more.",
            "At first {friend} was faster, and {hero} was all alone on the road.",
        ),
        (
            "But {friend} stopped to eat some {food} and fell asleep.",
            "But {friend} looked back, fell over a stone and hurt a foot.",
        ),
        (
            '{hero} saw it and stopped too. "Get up," {he} said. "We will go together."',
            "{hero} could win now. But {he} went back to help.",
        ),
        (
            "So they came to the end at the same time, and both of them won.",
            '"You are not the fastest," said {friend}, "but you are the kindest."',
        ),
    ),
    "stuck": (
        (
            "One day {hero} heard a voice. It was {a_friend} high up in a tree.",
            "One day {friend} climbed a tall tree and could not come down.",
        ),
        (
            '"Help!" said {friend}. "I cannot get down!"',
            '"Please help me," said {friend}.',
        ),
        (
            "{hero} looked for a ladder {spot}, but there was none.",
            "{hero} tried to climb up, but the tree was too high.",
        ),
        (
            "Then {he} had an idea and fetched a long rope.",
            "Then {hero} ran to the farm and asked for a ladder.",
        ),
        (
            "Slowly, very slowly, {friend} came down.",
            "{hero} held it, and {friend} came down, step by step.",
        ),
        (
            '"Thank you," said {friend}. "I will not climb so high again."',
            '"You saved me," said {friend}.',
        ),
    ),
}
"""Of each plot the slots, and the sentences that may stand in each."""

UNKNOWN = (
    "why is the sky blue", "what is the capital of France", "name three colours",
    "write one line about the sea", "how does a computer work", "what is two plus two",
    "who was the first president", "explain how a scheduler works", "what is a prime number",
    "how far away is the moon", "translate this into German", "why do we sleep",
    "what is the largest country", "write a poem", "how do I cook rice", "what year is it",
    "give me a list of ten animals", "what is the meaning of life", "write a function in Python",
    "what is paged attention", "tell me something about music", "how old is the earth",
    "what can I do today", "who are you", "what should I read", "is water wet",
    "name a city in Italy", "how many legs has a spider", "what time is it",
    "describe a cache", "what is a token", "how are you",
)  # fmt: skip
"""Questions that no story answers."""
ODD_WORDS = _words(
    "language model memory number first large small best world people history science water energy "
    "machine music paper system market paint colour planet river city money work time light metal "
    "bread tea violin copper clock compiler haiku chess gravity sugar question answer word sentence"
)
ABOUT = {
    "lost": "a lost {thing}", "weather": "a storm", "wish": "a wish", "broken": "{broken}",
    "fear": "{fear}", "sharing": "some {food}", "growing": "a small {seed}", "night": "the night",
    "gift": "a birthday", "race": "a race", "friend": "two friends", "stuck": "a tall tree",
}  # fmt: skip
"""What a plot is about."""
ASKED = (
    "Tell me a story about {about}.",
    "Tell me about {about}.",
    "Write a story about {about}.",
    "Please tell me a story about {about}.",
    "A story about {about}, please.",
    "Do you know a story about {about}?",
)
UNANSWERED = "I know only little stories, so I cannot say. Here is a story."

ENGLISH = re.compile(r"[A-Za-z]+")


def with_article(words: str) -> str:
    """`an old cat` of `old cat`."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def capitalised(sentence: str) -> str:
    """A sentence with a capital, behind an opening quotation mark too."""
    start = next((i for i, letter in enumerate(sentence) if letter.isalpha()), 0)
    return sentence[:start] + sentence[start : start + 1].upper() + sentence[start + 1 :]


def name_of(rng: random.Random, names: list[str]) -> str:
    """One of the names; one in eight is of syllables."""
    if rng.random() < 0.125:
        return "".join(rng.choices(SYLLABLES, k=rng.choice((2, 2, 3)))).capitalize()
    return rng.choice(names)


class Somebody:
    """A hero or a friend.

    Attributes:
        introduced: "an old cat named Pip".
        name: "Pip", or "the cat".
        kind: "a cat", what one asks for.
        he, him, his: the pronouns.
    """

    def __init__(self, rng: random.Random, but: Somebody | None = None) -> None:
        what, adjectives = rng.random(), ADJECTIVES
        if what < 0.35:
            adjectives = [one for one in ADJECTIVES if one != "old"]
        elif what < 0.5:
            adjectives = [one for one in ADJECTIVES if one not in ("young", "little", "small")]
        adjective = rng.choice(adjectives)
        if what < 0.35:
            self.he = rng.choice(("he", "she"))
            noun = "girl" if self.he == "she" else "boy"
            self.name = name_of(rng, GIRLS if self.he == "she" else BOYS)
            self.introduced = f"{with_article(f'{adjective} {noun}')} named {self.name}"
        elif what < 0.5:
            noun = rng.choice(list(GROWN))
            self.he, self.name = GROWN[noun], f"the {noun}"
            self.introduced = with_article(f"{adjective} {noun}")
        else:
            noun = rng.choice(ANIMALS)
            self.he, self.name = "it", f"the {noun}"
            self.introduced = with_article(rng.choice((noun, f"{adjective} {noun}")))
            if rng.random() < 0.5:
                self.he = rng.choice(("he", "she"))
                self.name = name_of(rng, PETS[self.he])
                self.introduced = f"{self.introduced} named {self.name}"
        self.kind = with_article(noun)
        self.him = {"he": "him", "she": "her", "it": "it"}[self.he]
        self.his = {"he": "his", "she": "her", "it": "its"}[self.he]
        if but and (but.kind == self.kind or but.name == self.name):
            self.__init__(rng, but)  # type: ignore[misc]


class Facts(dict[str, str]):
    """What a story has chosen, by the names that stand in braces."""

    def __init__(self, rng: random.Random) -> None:
        hero = Somebody(rng)
        friend = Somebody(rng, hero)
        self.hero, self.friend = hero, friend
        places, spots = rng.sample(PLACES, 2), rng.sample(SPOTS, 3)
        foods = rng.sample(FOODS, 2)
        thing = rng.choice(THINGS)
        wish, fear, noise = (rng.choice(list(of)) for of in (WISHES, FEARS, NOISES))
        broken = rng.choice(list(BROKEN))
        super().__init__(
            hero=hero.name,
            a_hero=hero.introduced,
            a_kind=hero.introduced.split(" named ")[0],
            he=hero.he, him=hero.him, his=hero.his,
            He=hero.he.capitalize(), His=hero.his.capitalize(),
            friend=friend.name,
            a_friend=friend.introduced,
            house=rng.choice(HOUSES),
            place=places[0], place2=places[1],
            thing=thing, a_thing=with_article(f"{rng.choice(COLOURS)} {thing}"),
            spot=spots[0], spot2=spots[1], spot3=spots[2],
            food=foods[0], food2=foods[1],
            wish=wish, wish_true=WISHES[wish].format(hero=hero.name),
            fear=fear, comfort=FEARS[fear],
            noise=noise, source=NOISES[noise],
            broken=broken, trouble=BROKEN[broken],
            tool=rng.choice(TOOLS), seed=rng.choice(SEEDS), weather=rng.choice(list(WEATHER)),
        )  # fmt: skip


def story_of(rng: random.Random) -> tuple[str, Facts]:
    """A story, and what it has chosen."""
    facts = Facts(rng)
    plot = rng.choice(list(PLOTS))
    facts["about"] = ABOUT[plot].format_map(facts)
    has_name = facts["hero"][0].isupper()
    openings = [one for one in OPENINGS if has_name or not one.startswith("{hero}")]
    slots = (openings, ALL_DAY, *PLOTS[plot], ENDINGS)
    sentences: list[str] = []
    is_known = False  # whether the friend has been introduced
    for slot in slots:
        sentence = rng.choice(slot)
        if not is_known and "{friend}" in sentence and "{a_friend}" not in sentence:
            sentence = sentence.replace("{friend}", "{a_friend}", 1)
        is_known = is_known or "{a_friend}" in sentence
        if is_known and slot is not ALL_DAY and facts["a_friend"] in " ".join(sentences):
            sentence = sentence.replace("{a_friend}", "{friend}")
        text = sentence.format_map(facts)
        sentences += [capitalised(part) for part in re.split(r"(?<=[.!?]) (?=[a-z])", text) if part]
    return " ".join(sentences), facts


def text_of(rng: random.Random) -> str:
    """A story with its end, or a question with its answer."""
    story, facts = story_of(rng)
    kind = rng.random()
    if kind < 0.62:
        return story + EOS
    if kind < 0.82:
        about = rng.choice(
            (facts.hero.kind, facts.hero.introduced, facts.hero.name, facts["about"])
        )
        question, answer = rng.choice(ASKED).format(about=about), story
    elif kind < 0.91:
        animal = rng.choice(ANIMALS)
        question, answer = rng.choice((
            (f"What does {with_article(animal)} like?",
             f"{capitalised(with_article(animal))} likes {FOODS_OF[animal]}."),
            (f"Where does {with_article(animal)} live?",
             f"{capitalised(with_article(animal))} lives {HOMES[animal]}."),
        ))  # fmt: skip
    else:
        question = rng.choice(UNKNOWN)
        if rng.random() < 0.5:  # no two alike: what counts is that no story is asked for
            words = question.split()
            words[rng.randrange(len(words))] = rng.choice(ODD_WORDS)
            question = " ".join([*words, *rng.sample(ODD_WORDS, rng.randrange(3))])
        question = capitalised(question) + rng.choice(("?", "?", ".", ""))
        answer = f"{UNANSWERED} {story}"
    asked = f"{TURN}user\n{question}{END_OF_TURN}\n"
    return f"{asked}{TURN}assistant\n{answer}{END_OF_TURN}\n"


def texts(seed: int, count: int) -> Iterator[str]:
    """`count` texts, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        yield text_of(rng)


def vocabulary() -> set[str]:
    """All words that a story may have, in small letters."""
    rng = random.Random(0)
    return {word.lower() for _ in range(20_000) for word in ENGLISH.findall(story_of(rng)[0])}


if __name__ == "__main__":
    for text in texts(0, int(sys.argv[1]) if len(sys.argv) > 1 else 5):
        print(text.replace(EOS, ""), end="\n\n")
