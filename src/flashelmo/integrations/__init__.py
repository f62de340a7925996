"""flashelmo inside other tools. Each module is imported by itself, and needs the tool's package (an extra of its name).

texts.py                  texts to vectors, by a model that is loaded where it is first used; all others build on it
sklearn.py                a transformer of scikit-learn
sentence_transformers.py  a module of sentence-transformers
spacy.py                  a pipeline's component that fills token vectors
flair.py                  token embeddings of flair
langchain.py              embeddings of LangChain
batches.py                columns of batches: `map` of Hugging Face datasets, `map_batches` of Ray Data
"""
