# docker build -t striate . && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" striate quickstart
FROM python:3.12-slim

# An index of other builds of torch, such as those without CUDA; and extras, such as qlora,lm-eval.
ARG TORCH_INDEX=""
ARG EXTRAS=""

# Compiled layers want a C compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# Torch changes less often than what lies here.
RUN pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "torch>=2.8"

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY striate striate
RUN pip install --no-cache-dir ".${EXTRAS:+[$EXTRAS]}" && rm -rf /src/*

# Whoever runs it may write there.
RUN mkdir -m 1777 /cache /work
ENV HOME=/cache HF_HOME=/cache/huggingface STRIATE_CACHE=/cache/striate
WORKDIR /work
ENTRYPOINT ["striate"]
CMD ["--help"]
