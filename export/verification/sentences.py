"""The text for verifying exported files: forty sentences of the King James Version, of 3 to 27 tokens.

Genesis 1–4 and verses of a few words. First published in 1611 and in the public domain. Lengths are mixed, so that
every batch of them is ragged.
"""

from __future__ import annotations

TEXT = """\
In the beginning God created the heaven and the earth .
Jesus wept .
And the Spirit of God moved upon the face of the waters .
And the fourth river is Euphrates .
And God said , Let there be light : and there was light .
Rejoice evermore .
And the earth was without form , and void ; and darkness was upon the face of the deep .
Thou shalt not steal .
And God called the light Day , and the darkness he called Night .
And the evening and the morning were the first day .
Pray without ceasing .
And God called the firmament Heaven .
But there went up a mist from the earth , and watered the whole face of the ground .
Thus the heavens and the earth were finished , and all the host of them .
And God set them in the firmament of the heaven to give light upon the earth ,
Thou shalt not kill .
And the rib , which the LORD God had taken from man , made he a woman , and brought her unto the man .
and why is thy countenance fallen ?
Shem , Arphaxad , Shelah ,
And Adam called his wife's name Eve ; because she was the mother of all living .
Unto Adam also and to his wife did the LORD God make coats of skins , and clothed them .
And he said , Who told thee that thou wast naked ?
Quench not the Spirit .
Hast thou eaten of the tree , whereof I commanded thee that thou shouldest not eat ?
And she again bare his brother Abel .
If thou doest well , shalt thou not be accepted ?
And the serpent said unto the woman , Ye shall not surely die :
Remember Lot's wife .
And he said , What hast thou done ?
And the gold of that land is good : there is bdellium and the onyx stone .
And Cain was very wroth , and his countenance fell .
Eber , Peleg , Reu ,
And the LORD said unto Cain , Where is Abel thy brother ?
And he said , I heard thy voice in the garden , and I was afraid , because I was naked ; and I hid myself .
And he said , I know not : Am I my brother's keeper ?
Despise not prophesyings .
the voice of thy brother's blood crieth unto me from the ground .
If Cain shall be avenged sevenfold , truly Lamech seventy and sevenfold .
And Adah bare Jabal : he was the father of such as dwell in tents , and of such as have cattle .
And his brother's name was Jubal : he was the father of all such as handle the harp and organ .
"""
SENTENCES = tuple(tuple(line.split()) for line in TEXT.splitlines())

# Two, three and four bytes per character; combining marks; no white space between words.
MULTIBYTE_WORDS = ("naïve", "Übermaß", "ἀρχή", "начале", "בראשית", "日本語", "한국어", "e\u0301te\u0301", "😀")
