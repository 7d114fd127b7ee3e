import pytest

from amnesia.facts.answers import answer_line, matches, normalized, reply, same_answer


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("A.B.C. (the band)", "a-b-c band"),
        ("AC/DC", "ac-dc"),
        ("Île-de-France", "ile-de-france"),
        ("ＴＯＫＹＯ", "tokyo"),
        ("日本", "日 本"),
        ("C++, C# and F", "c++ c# and f"),
        ("−5 in 1939-1945", "−5 in 1939-1945"),
        ("1,000 and 3.14", "1000 and 3.14"),
        ("й, が", "й が"),
        ("an", ""),
        ("the a", ""),
        ("Vitamin A", "vitamin a"),
        ("a Vitamin of the body", "vitamin of body"),
        ("เมืองหลวง", "เ มื อ ง ห ล ว ง"),
        ("ลาว: ວຽງຈັນ ok", "ล า ว ວ ຽ ງ ຈັ ນ ok"),
        ("C♯ and B♭", "c# and b♭"),
        ("—…!", ""),
    ],
)
def test_normalization(text, words):
    assert normalized(text) == words


@pytest.mark.parametrize(
    ("generated", "answers", "expected"),
    [
        (" Paris.", ["Paris"], True),
        (" the city of paris, on the river", ["Paris"], True),
        (" Parisian", ["Paris"], False),
        (" New York", ["York City"], False),
        (" New York City", ["The New York"], True),
        (" Lyon\nThe capital is Paris", ["Paris"], False),
        ("\n\nParis", ["Paris"], True),
        (" NYC", ["New York City", "NYC"], True),
        (" 首都は東京です", ["東京"], True),
        ("", ["Paris"], False),
        (" the", ["The"], False),
        (" nothing", [], False),
        (" Paris/London", ["Paris"], True),
        (" Paris—the capital", ["Paris"], True),
        (" Paris-based", ["Paris"], True),
        (" Paris’s streets", ["Paris"], True),
        (" **Paris**", ["Paris"], True),
        (" Spider Man", ["Spider-Man"], True),
        (" Spider\u2011Man", ["Spider Man"], True),
        (" Spiderman", ["Spider-Man"], True),
        (" Spider-Man", ["Spiderman"], True),
        (" O\u2019Neil", ["O'Neil"], True),
        (" Hawai\u02bbi", ["Hawaii"], True),
        (" the U.S. of A.", ["US"], True),
        (" Beyonce\u0301", ["Beyonc\u00e9"], True),
        (" Beyonce", ["Beyonc\u00e9"], True),
        (" soft\u00adhyphen", ["softhyphen"], True),
        (" Simon and Garfunkel", ["Simon & Garfunkel"], True),
        (" 1000 people", ["1,000"], True),
        (" C++", ["C"], False),
        (" C#", ["C"], False),
        (" C, not C++", ["C"], True),
        (" C++-style", ["C++"], True),
        (" -5 degrees", ["5"], False),
        (" 5-10", ["5"], True),
        (" x-ray machine", ["X"], False),
        (" Objective-C", ["C"], False),
        (" Objective-C++", ["C++"], False),
        (" AT&T", ["AT"], False),
        (" AT&T", ["AT&T"], True),
        (" AT & T", ["AT&T"], True),
        (" rock&roll", ["Rock"], True),
        (" Node.js", ["Node"], False),
        (" Node.js", ["Node.js"], True),
        (" Nodejs, a runtime", ["Node.js"], True),
        (" Node JS", ["Node.js"], True),
        (" Node.js", ["NodeJS"], True),
        (" Paris.The capital", ["Paris"], True),
        (" 5 p.m.", ["5 pm"], True),
        (" St. Louis", ["Saint Louis", "St Louis"], True),
        (" 2,5", ["2"], False),
        (" 3,14", ["3.14"], True),
        (" 1, 2", ["1"], True),
        (" C/C++", ["C"], True),
        (" C/C++", ["C++"], True),
        (" AC/DC", ["C"], False),
        (" ACDC", ["AC/DC"], True),
        (" It ended 3-2", ["32"], False),
        (" 9-11", ["911"], False),
        (" F16", ["F-16"], True),
        (" F-16", ["F16"], True),
        (" 10\u00b2", ["102"], False),
        (" 10\u00b2", ["10^2"], True),
        (" 10\u00b2\u00b3 atoms", ["10^23"], True),
        (" CO\u2082", ["CO2"], True),
        (" 25 m\u00b2", ["25 m2"], True),
        (" \u00bd", ["1/2"], True),
        (" 2\u00bd", ["2 1/2"], True),
        (" 2\u00bd", ["21/2"], False),
        (" T-shirts", ["T"], False),
        (" X's owner", ["X"], True),
        (" X, formerly Twitter", ["X"], True),
        (" 3.14", ["3"], False),
        (" I ran away", ["Iran"], False),
        (" Vitamin A is good", ["Vitamin A"], True),
        (" Vitamin C is good", ["Vitamin A"], False),
        (" the Lord of the Rings", ["Lord of Rings"], True),
        (" the Lord of Rings", ["The Lord of the Rings"], True),
        (" C♯ minor", ["C#"], True),
        (" C major", ["C♯"], False),
        (" B flat", ["B♭"], False),
        ('"\nParis', ["Paris"], True),
        ("เมืองหลวงคือกรุงเทพ", ["กรุงเทพ"], True),
        ("เมืองหลวงคือกรุงเทพ", ["เชียงใหม่"], False),
        ("ນະຄອນຫຼວງວຽງຈັນ", ["ວຽງຈັນ"], True),
        ("រាជធានីភ្នំពេញ", ["ភ្នំពេញ"], True),
        ("မြို့တော်နေပြည်တော်", ["နေပြည်တော်"], True),
        (" Lodz", ["Łódź"], True),
        (" Łódź", ["Lodz"], True),
        (" Orsted and Aesop", ["Ørsted"], True),
        (" Æsop", ["Aesop"], True),
        (" Da Nang", ["Đà Nẵng"], True),
        (" ΑΘΗΝΑ", ["Αθήνα"], True),
        (" Горбачёв", ["Горбачев"], True),
        (" Москва́", ["Москва"], True),
        (" мой", ["мои"], False),
        (" مُحَمَّد", ["محمد"], True),
        (" שָׁלוֹם", ["שלום"], True),
        (" \u20135 degrees", ["-5"], True),
        (" \u20135 degrees", ["5"], False),
        (" 1 000 people", ["1000"], True),
        (" 1\u202f000\u202f000", ["1,000,000"], True),
        (" in 1945 100 people", ["1945"], True),
        (" 3/4 of it", ["3"], False),
        (" 1998/99", ["1998"], True),
        (" 19:30", ["19"], False),
        (" 10^6", ["10"], False),
        (" ratio 3:1", ["3:1"], True),
    ],
)
def test_answers_are_found_as_whole_words_of_the_first_line(generated, answers, expected):
    assert matches(generated, answers) is expected


def test_replies():
    assert reply("", False) == "empty"
    assert reply(" \n ", False) == "empty"
    assert reply(" ... ", False) == "empty"
    assert reply(" I don't know.", False) == "refusal"
    assert reply("Sorry, but I can't help with that", False) == "refusal"
    assert reply("As an AI language model, I", False) == "refusal"
    assert reply(" Sorry", True) == "answer"
    assert reply(" Paris, sorry", False) == "answer"
    assert reply(" Unknownville", False) == "answer"


def test_lines_and_equal_answers():
    assert answer_line("\n a b \nc") == "a b"
    assert answer_line('"\n the\nParis\nLyon') == "Paris"
    assert answer_line('"\n...') == ""
    assert same_answer("The Beatles", "beatles!")
    assert not same_answer("Beatles", "Beatle")
    assert not same_answer("!", "?")
