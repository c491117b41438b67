//! The trunk: everything but the routed experts. Loaded in parts (the embedding, each layer, the head),
//! so that several threads can work on it.

use std::sync::Arc;

use super::block::{Block, BlockPlan};
use super::expert::activation;
use super::manifest::Digest;
use super::matrix_plan::{MatrixPlan, Part};
use super::shard::Shard;
use crate::checkpoint::{Checkpoint, CheckpointError, Plane, Reader, Values, vector};
use crate::family::{LayerNames, Names};
use crate::kernel::{Activation, Matrix, Placement, Region};
use crate::spec::{Attention, FeedForward, Grouped, Latent, Layer, Moe, QkNorm, Spec};

/// A whole trunk.
#[derive(Debug)]
pub struct TrunkWeights {
    /// Rows of the embedding.
    pub embedding: Embedding,
    /// In order.
    pub layers: Vec<TrunkLayer>,
    /// Norm before the head.
    pub norm: Vec<f32>,
    /// From row to logits.
    pub head: Matrix,
}

/// Rows of the embedding.
#[derive(Debug)]
pub enum Embedding {
    /// As stored, or rounded.
    Bf16(Vec<u16>),
    /// Exactly as stored, in class `f32`.
    F32(Vec<f32>),
    /// The head's columns.
    Tied,
}

/// One layer of the trunk.
#[derive(Debug)]
pub struct TrunkLayer {
    /// Norm before attention.
    pub input_norm: Vec<f32>,
    /// How rows see one another.
    pub attention: AttentionWeights,
    /// Norm before the feed-forward.
    pub post_norm: Vec<f32>,
    /// What follows.
    pub forward: ForwardWeights,
}

/// Attention of one layer.
#[derive(Debug)]
pub enum AttentionWeights {
    /// Grouped queries.
    Grouped(GroupedWeights),
    /// A latent.
    Latent(LatentWeights),
}

/// Weights of grouped attention.
#[derive(Debug)]
pub struct GroupedWeights {
    /// Queries.
    pub query: Matrix,
    /// Keys.
    pub key: Matrix,
    /// Values.
    pub value: Matrix,
    /// Output.
    pub output: Matrix,
    /// Biases of the first three, in panel order.
    pub biases: Option<[Vec<f32>; 3]>,
    /// Bias of the output, in panel order.
    pub output_bias: Option<Vec<f32>>,
    /// Norms of queries and keys.
    pub norms: Option<[Vec<f32>; 2]>,
    /// One logit per head.
    pub sinks: Option<Vec<f32>>,
}

/// Weights of latent attention.
#[derive(Debug)]
pub struct LatentWeights {
    /// From row to queries.
    pub query: QueryWeights,
    /// From row to latent and rotated key.
    pub latent: Matrix,
    /// Its bias, in panel order.
    pub latent_bias: Option<Vec<f32>>,
    /// Norm of the latent.
    pub latent_norm: Vec<f32>,
    /// Per head, from a query's plain part into the latent's space.
    pub absorb: Vec<Matrix>,
    /// Per head, from the attended latent to the head's value.
    pub value: Vec<Matrix>,
    /// Output.
    pub output: Matrix,
    /// Its bias, in panel order.
    pub output_bias: Option<Vec<f32>>,
}

/// From row to queries.
#[derive(Debug)]
pub enum QueryWeights {
    /// In one step.
    Direct(Matrix),
    /// Through a compressed query.
    Compressed {
        /// Down.
        down: Matrix,
        /// Its bias, in panel order.
        bias: Option<Vec<f32>>,
        /// Norm between.
        norm: Vec<f32>,
        /// Up.
        up: Matrix,
    },
}

/// What follows attention.
#[derive(Debug)]
pub enum ForwardWeights {
    /// One block.
    Dense(Block),
    /// One block that is not the trunk's: rows go out to it as to an expert that all of them chose.
    DenseOut,
    /// Routed experts; they are not part of the trunk, their gate and shared experts are.
    Moe(Box<GateWeights>),
}

/// The trunk's part of a sparse layer.
#[derive(Debug)]
pub struct GateWeights {
    /// From row to logits, multiplied in f32.
    pub router: Matrix,
    /// Part of the logit, in panel order.
    pub bias: Option<Vec<f32>>,
    /// Takes part in choosing only.
    pub correction: Option<Vec<f32>>,
    /// Experts that every row takes.
    pub shared: Option<Block>,
    /// Its product with a row gates the shared experts' output.
    pub shared_gate: Option<Vec<f32>>,
}

/// Finds and loads the parts of a trunk.
#[derive(Debug, Clone, Copy)]
pub struct TrunkPlan<'c> {
    checkpoint: &'c Checkpoint,
    spec: &'c Spec,
    names: Names,
    dense_out: bool,
}

/// What a loaded layer says of itself.
pub(crate) type Loaded<T> = Result<(T, Option<Digest>), CheckpointError>;

impl<'c> TrunkPlan<'c> {
    /// A plan for the whole trunk.
    pub fn new(checkpoint: &'c Checkpoint, spec: &'c Spec) -> Self {
        Self { checkpoint, spec, names: Names::new(spec.family), dense_out: false }
    }

    /// The same without the feed-forwards of dense layers, or with them.
    pub fn with_dense_out(self, dense_out: bool) -> Self {
        Self { dense_out, ..self }
    }

    fn plane(&self, name: &str, rows: usize, columns: usize) -> Result<Plane<'c>, CheckpointError> {
        Plane::whole(self.checkpoint, name, rows, columns, self.spec.quantization)
    }

    fn matrix(&self, name: &str, rows: usize, columns: usize) -> Result<MatrixPlan<'c>, CheckpointError> {
        Ok(MatrixPlan::of(self.plane(name, rows, columns)?))
    }

    /// Bytes of the packed trunk in the BF16 classes, found without reading it.
    pub fn bytes(&self) -> Result<u64, CheckpointError> {
        let spec = self.spec;
        let mut bytes = self.matrix(self.head_name(), spec.vocab, spec.hidden)?.bytes(false);
        if !spec.tied {
            bytes += 2 * spec.vocab * spec.hidden;
        }
        for (index, layer) in spec.layers.iter().enumerate() {
            let names = self.names.layer(index);
            bytes += self.attention(layer, &names)?.bytes(false);
            bytes += self.forward(layer, &names)?.bytes(false);
        }
        Ok(bytes as u64)
    }

    fn head_name(&self) -> &'static str {
        if self.spec.tied { self.names.embedding() } else { self.names.head() }
    }

    fn attention(&self, layer: &Layer, names: &LayerNames) -> Result<AttentionPlan<'c>, CheckpointError> {
        Ok(match &layer.attention {
            Attention::Grouped(g) => AttentionPlan::Grouped(self.grouped(g, names)?),
            Attention::Latent(l) => AttentionPlan::Latent(self.latent(l, names)?),
        })
    }

    /// Loads the embedding; nothing if it is the head.
    pub fn embedding(&self, reader: &mut Reader) -> Loaded<Embedding> {
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        if self.spec.tied {
            return Ok((Embedding::Tied, reader.take_digest().map(Digest)));
        }
        let plane = self.plane(self.names.embedding(), vocab, hidden)?;
        let mut halves = Vec::new();
        let mut floats = Vec::new();
        match reader.exact && plane.is_wide() {
            true => floats.reserve_exact(vocab * hidden),
            false => halves.reserve_exact(vocab * hidden),
        }
        plane.stream(reader, |_, values| match values {
            Values::Bf16(values) => halves.extend_from_slice(values),
            Values::F32(values) => floats.extend_from_slice(values),
        })?;
        let embedding = if floats.is_empty() { Embedding::Bf16(halves) } else { Embedding::F32(floats) };
        Ok((embedding, reader.take_digest().map(Digest)))
    }

    /// Loads the norm before the head, and the head.
    pub fn head(&self, reader: &mut Reader) -> Loaded<(Vec<f32>, Matrix)> {
        let (vocab, hidden) = (self.spec.vocab, self.spec.hidden);
        let norm = vector(self.checkpoint, reader, self.names.norm(), hidden)?;
        let plan = self.matrix(self.head_name(), vocab, hidden)?;
        let region = Arc::new(Region::new(plan.bytes(reader.exact)));
        let head = plan.load(&region, reader)?;
        region.settle();
        Ok(((norm, head), reader.take_digest().map(Digest)))
    }

    /// Loads layer `index`.
    pub fn layer(&self, index: usize, reader: &mut Reader) -> Loaded<TrunkLayer> {
        let layer = &self.spec.layers[index];
        let names = self.names.layer(index);
        let attention = self.attention(layer, &names)?;
        let forward = self.forward(layer, &names)?;
        let bytes = attention.bytes(reader.exact) + forward.bytes(reader.exact);
        let region = Arc::new(Region::new(bytes));
        let hidden = self.spec.hidden;
        let layer = TrunkLayer {
            input_norm: vector(self.checkpoint, reader, &names.input_norm(), hidden)?,
            attention: match (&attention, &layer.attention) {
                (AttentionPlan::Grouped(plan), Attention::Grouped(g)) => {
                    AttentionWeights::Grouped(self.load_grouped(plan, g, &names, &region, reader)?)
                }
                (AttentionPlan::Latent(plan), Attention::Latent(l)) => {
                    AttentionWeights::Latent(self.load_latent(plan, l, &names, &region, reader)?)
                }
                _ => unreachable!("the plan was made from the same attention"),
            },
            post_norm: vector(self.checkpoint, reader, &names.post_norm(), hidden)?,
            forward: self.load_forward(&forward, layer, &names, &region, reader)?,
        };
        region.settle();
        Ok((layer, reader.take_digest().map(Digest)))
    }

    fn grouped(&self, g: &Grouped, names: &LayerNames) -> Result<[MatrixPlan<'c>; 4], CheckpointError> {
        let hidden = self.spec.hidden;
        let (queries, keys) = (g.heads * g.head_dim, g.kv_heads * g.head_dim);
        Ok([
            self.matrix(&names.attention("q_proj.weight"), queries, hidden)?,
            self.matrix(&names.attention("k_proj.weight"), keys, hidden)?,
            self.matrix(&names.attention("v_proj.weight"), keys, hidden)?,
            self.matrix(&names.attention("o_proj.weight"), hidden, queries)?,
        ])
    }

    fn load_grouped(
        &self,
        [query, key, value, output]: &[MatrixPlan<'c>; 4],
        g: &Grouped,
        names: &LayerNames,
        region: &Arc<Region>,
        reader: &mut Reader,
    ) -> Result<GroupedWeights, CheckpointError> {
        let query = query.load(region, reader)?;
        let key = key.load(region, reader)?;
        let value = value.load(region, reader)?;
        let output = output.load(region, reader)?;
        let mut bias = |part: &str, matrix: &Matrix| self.bias(reader, &names.attention(part), matrix);
        let biases = match g.qkv_bias {
            true => {
                Some([bias("q_proj.bias", &query)?, bias("k_proj.bias", &key)?, bias("v_proj.bias", &value)?])
            }
            false => None,
        };
        let output_bias = if g.output_bias { Some(bias("o_proj.bias", &output)?) } else { None };
        let lengths = match g.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some((g.head_dim, g.head_dim)),
            QkNorm::Whole => Some((query.n(), key.n())),
        };
        let norms = match lengths {
            None => None,
            Some((q, k)) => Some([
                vector(self.checkpoint, reader, &names.attention("q_norm.weight"), q)?,
                vector(self.checkpoint, reader, &names.attention("k_norm.weight"), k)?,
            ]),
        };
        let sinks = match g.sinks {
            true => Some(vector(self.checkpoint, reader, &names.attention("sinks"), g.heads)?),
            false => None,
        };
        Ok(GroupedWeights { query, key, value, output, biases, output_bias, norms, sinks })
    }

    fn latent(&self, l: &Latent, names: &LayerNames) -> Result<LatentPlan<'c>, CheckpointError> {
        let hidden = self.spec.hidden;
        let queries = l.heads * (l.plain_dim + l.rotary_dim);
        let query = match l.query_rank {
            None => vec![self.matrix(&names.attention("q_proj.weight"), queries, hidden)?],
            Some(rank) => vec![
                self.matrix(&names.attention("q_a_proj.weight"), rank, hidden)?,
                self.matrix(&names.attention("q_b_proj.weight"), queries, rank)?,
            ],
        };
        let head_rows = l.plain_dim + l.value_dim;
        let name = names.attention("kv_b_proj.weight");
        let both = Arc::new(self.plane(&name, l.heads * head_rows, l.latent_rank)?);
        let heads = (0..l.heads)
            .map(|head| {
                let (start, middle) = (head * head_rows, head * head_rows + l.plain_dim);
                let mut absorb = MatrixPlan::plain(l.latent_rank, l.plain_dim);
                absorb.add(Part::turned(&both, start..middle, Placement::Plain));
                let mut value = MatrixPlan::plain(l.value_dim, l.latent_rank);
                value.add(Part::rows(&both, middle..start + head_rows, Placement::Plain));
                (absorb, value)
            })
            .collect();
        Ok(LatentPlan {
            query,
            latent: self.matrix(
                &names.attention("kv_a_proj_with_mqa.weight"),
                l.latent_rank + l.rotary_dim,
                hidden,
            )?,
            heads,
            output: self.matrix(&names.attention("o_proj.weight"), hidden, l.heads * l.value_dim)?,
        })
    }

    fn load_latent(
        &self,
        plan: &LatentPlan<'c>,
        l: &Latent,
        names: &LayerNames,
        region: &Arc<Region>,
        reader: &mut Reader,
    ) -> Result<LatentWeights, CheckpointError> {
        let query = match plan.query.as_slice() {
            [direct] => QueryWeights::Direct(direct.load(region, reader)?),
            [down, up] => {
                let down = down.load(region, reader)?;
                let bias = match l.bias {
                    true => Some(self.bias(reader, &names.attention("q_a_proj.bias"), &down)?),
                    false => None,
                };
                let name = names.attention("q_a_layernorm.weight");
                let norm = vector(self.checkpoint, reader, &name, down.n())?;
                QueryWeights::Compressed { bias, norm, up: up.load(region, reader)?, down }
            }
            _ => unreachable!("a query has one or two matrices"),
        };
        let latent = plan.latent.load(region, reader)?;
        let latent_bias = match l.bias {
            true => Some(self.bias(reader, &names.attention("kv_a_proj_with_mqa.bias"), &latent)?),
            false => None,
        };
        let name = names.attention("kv_a_layernorm.weight");
        let latent_norm = vector(self.checkpoint, reader, &name, l.latent_rank)?;
        let mut absorb = Vec::with_capacity(l.heads);
        let mut value = Vec::with_capacity(l.heads);
        for (a, v) in &plan.heads {
            absorb.push(a.load(region, reader)?);
            value.push(v.load(region, reader)?);
        }
        let output = plan.output.load(region, reader)?;
        let output_bias = match l.bias {
            true => Some(self.bias(reader, &names.attention("o_proj.bias"), &output)?),
            false => None,
        };
        Ok(LatentWeights { query, latent, latent_bias, latent_norm, absorb, value, output, output_bias })
    }

    fn forward(&self, layer: &Layer, names: &LayerNames) -> Result<ForwardPlan<'c>, CheckpointError> {
        let hidden = self.spec.hidden;
        let block = |names, width, shards: &[Shard]| {
            BlockPlan::separate(self.checkpoint, &names, hidden, width, self.spec.quantization, shards)
        };
        match &layer.feed_forward {
            FeedForward::Dense { .. } if self.dense_out => Ok(ForwardPlan::DenseOut),
            FeedForward::Dense { width } => {
                // Cut here as on devices of its own, so that the bits are the same in both places.
                let shards: Vec<Shard> = Shard::all(self.spec.shards).collect();
                Ok(ForwardPlan::Dense(block(names.dense(), *width, &shards)?))
            }
            FeedForward::Moe(moe) => Ok(ForwardPlan::Moe {
                router: self.router(moe, names)?,
                shared: match &moe.shared {
                    Some(shared) => Some(block(names.shared(), shared.width, &[Shard::WHOLE])?),
                    None => None,
                },
            }),
        }
    }

    fn router(&self, moe: &Moe, names: &LayerNames) -> Result<MatrixPlan<'c>, CheckpointError> {
        let (name, renamed) = (names.gate(), names.gate_renamed());
        let moved = self.checkpoint.find(&name).is_none() && self.checkpoint.find(&renamed).is_some();
        self.matrix(if moved { &renamed } else { &name }, moe.experts, self.spec.hidden)
    }

    fn load_forward(
        &self,
        plan: &ForwardPlan<'c>,
        layer: &Layer,
        names: &LayerNames,
        region: &Arc<Region>,
        reader: &mut Reader,
    ) -> Result<ForwardWeights, CheckpointError> {
        let (router, shared) = match plan {
            ForwardPlan::Dense(block) => {
                return Ok(ForwardWeights::Dense(block.load(region, reader, Activation::Silu)?));
            }
            ForwardPlan::DenseOut => return Ok(ForwardWeights::DenseOut),
            ForwardPlan::Moe { router, shared } => (router, shared),
        };
        let FeedForward::Moe(moe) = &layer.feed_forward else {
            unreachable!("the plan was made from the same layer")
        };
        self.load_gate(router, shared.as_ref(), moe, names, region, reader)
    }

    fn load_gate(
        &self,
        router: &MatrixPlan<'c>,
        shared: Option<&BlockPlan<'c>>,
        moe: &Moe,
        names: &LayerNames,
        region: &Arc<Region>,
        reader: &mut Reader,
    ) -> Result<ForwardWeights, CheckpointError> {
        // The gate is multiplied in f32, so its weights keep all that is stored.
        let exact = std::mem::replace(&mut reader.exact, true);
        let router = router.load(region, reader);
        reader.exact = exact;
        let router = router?;
        let bias = match moe.gate.logit_bias {
            true => Some(self.bias(reader, &names.gate_bias(), &router)?),
            false => None,
        };
        let correction = match moe.gate.correction_bias {
            true => Some(vector(self.checkpoint, reader, &names.correction_bias(), moe.experts)?),
            false => None,
        };
        let shared = match shared {
            Some(block) => Some(block.load(region, reader, activation(moe.activation))?),
            None => None,
        };
        let shared_gate = match &moe.shared {
            Some(s) if s.gated => {
                let name = names.shared_gate();

                Some(crate::checkpoint::vector_slice(self.checkpoint, reader, &name, 1, 0, self.spec.hidden)?)
            }
            _ => None,
        };
        Ok(ForwardWeights::Moe(Box::new(GateWeights { router, bias, correction, shared, shared_gate })))
    }

    /// A bias of all of a matrix's outputs, in panel order.
    fn bias(&self, reader: &mut Reader, name: &str, matrix: &Matrix) -> Result<Vec<f32>, CheckpointError> {
        let values = vector(self.checkpoint, reader, name, matrix.n())?;
        let mut bias = vec![0.0; matrix.shape().bias_len()];
        matrix.place_bias(Placement::Plain, &values, &mut bias);
        Ok(bias)
    }
}

enum AttentionPlan<'c> {
    Grouped([MatrixPlan<'c>; 4]),
    Latent(LatentPlan<'c>),
}

struct LatentPlan<'c> {
    query: Vec<MatrixPlan<'c>>,
    latent: MatrixPlan<'c>,
    heads: Vec<(MatrixPlan<'c>, MatrixPlan<'c>)>,
    output: MatrixPlan<'c>,
}

impl AttentionPlan<'_> {
    fn bytes(&self, exact: bool) -> usize {
        match self {
            AttentionPlan::Grouped(plans) => plans.iter().map(|p| p.bytes(exact)).sum(),
            AttentionPlan::Latent(l) => {
                let heads: usize = l.heads.iter().map(|(a, v)| a.bytes(exact) + v.bytes(exact)).sum();
                let query: usize = l.query.iter().map(|p| p.bytes(exact)).sum();
                heads + query + l.latent.bytes(exact) + l.output.bytes(exact)
            }
        }
    }
}

enum ForwardPlan<'c> {
    Dense(BlockPlan<'c>),
    DenseOut,
    Moe { router: MatrixPlan<'c>, shared: Option<BlockPlan<'c>> },
}

impl ForwardPlan<'_> {
    fn bytes(&self, exact: bool) -> usize {
        match self {
            ForwardPlan::Dense(block) => block.bytes(exact),
            ForwardPlan::DenseOut => 0,
            ForwardPlan::Moe { router, shared } => {
                router.bytes(true) + shared.as_ref().map_or(0, |s| s.bytes(exact))
            }
        }
    }
}
