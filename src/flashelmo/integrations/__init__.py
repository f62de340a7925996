"""Adapters to other tools. Each module is imported by itself and needs the tool's package (an extra of that name).

texts.py                  texts to vectors, with a model that is loaded on first use; the others build on it
sklearn.py                a transformer for scikit-learn
sentence_transformers.py  a module for sentence-transformers
spacy.py                  a pipeline component for spaCy that fills token vectors
flair.py                  token embeddings for flair
langchain.py              embeddings for LangChain
batches.py                columns of batches: `map` of Hugging Face datasets, `map_batches` of Ray Data
"""
