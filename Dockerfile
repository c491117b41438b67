# phalanx, phalanx-coordinator and phalanx-node in one small image. No syntax that only BuildKit has.

FROM rust:1.95-slim-bookworm AS build
WORKDIR /phalanx
# Nobody debugs in the image: it is built sooner, and is smaller, without what debuggers read.
ENV CARGO_PROFILE_RELEASE_DEBUG=false CARGO_PROFILE_RELEASE_STRIP=true
# Dependencies in a layer of their own: it is made anew only where a manifest changes.
COPY Cargo.toml Cargo.lock ./
COPY model/Cargo.toml model/
COPY settings/Cargo.toml settings/
COPY transport/Cargo.toml transport/
COPY node/Cargo.toml node/
COPY coordinator/Cargo.toml coordinator/
RUN for crate in . model settings transport node coordinator; do \
        mkdir -p $crate/src && : > $crate/src/lib.rs && echo 'fn main() {}' > $crate/src/main.rs; done \
    && cargo build --release --workspace --locked \
    && cargo clean --release --locked -p phalanx -p phalanx-model -p phalanx-settings -p phalanx-transport -p phalanx-node -p phalanx-coordinator \
    && find . -path ./target -prune -o -name '*.rs' -exec rm {} +
COPY demo-model/ demo-model/
COPY model/ model/
COPY settings/ settings/
COPY transport/ transport/
COPY node/ node/
COPY coordinator/ coordinator/
COPY src/ src/
RUN cargo build --release --workspace --locked

FROM debian:bookworm-slim
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin phalanx \
    && mkdir -m 0700 /authority /token /data && mkdir /model && chown phalanx /authority /token /data
COPY --from=build /phalanx/target/release/phalanx /phalanx/target/release/phalanx-coordinator /phalanx/target/release/phalanx-node /usr/local/bin/
COPY deploy/bin/ /usr/local/bin/
USER 10001
ENTRYPOINT []
CMD ["phalanx", "--help"]
