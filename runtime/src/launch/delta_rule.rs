//! Launches the kernels of the gated delta rule on a CubeCL server that other code uses too.

use super::bind::{Map, long_enough};
use super::ready::{Code, Image};
use super::run::by_value;
use super::{Device, LaunchError, Launches};
use butterfly_ir::DeltaRule;
use cubecl_runtime::client::ComputeClient;
use cubecl_runtime::server::{CubeCount, Handle, KernelArguments, TensorMapBinding};
use std::sync::Arc;

/// Most elements of a tensor, and most from one sequence of projections to the next: strides of tensor maps are
/// below 2^40 bytes.
const MOST_ELEMENTS: u64 = 1 << 39;
/// Elements that a thread of `prepare` or `finish` has of a row.
const PIECE: u32 = 8;
/// Halves of a v head, each walked by a workgroup.
const HALVES: u32 = 2;

/// The kernels of a gated delta rule, prepared for launching; clones share them.
#[derive(Clone, Debug)]
pub struct ReadyDeltaRule {
    /// In the order of launches.
    images: [Arc<Image>; 4],
    rule: Arc<DeltaRule>,
}

/// The sizes of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaTokens {
    /// B, the number of sequences.
    pub batch: u32,
    /// T, tokens of each sequence.
    pub tokens: u32,
    /// Elements from one sequence of the rows of projections to the next, a multiple of 8.
    pub row_batch: u64,
    /// Elements from one row of projections to the next, a multiple of 8.
    pub row_token: u32,
    /// The bits of the epsilon of the norm, an f32.
    pub epsilon_bits: u32,
}

/// Tensors of a launch; all are contiguous, except the rows of projections. Each handle starts at the tensor's first
/// element, those of 16-bit floats at a multiple of 16 bytes.
///
/// `channels` stands for [`DeltaRule::channels`], `chunks` for T by [`DeltaRule::CHUNK`], rounded up.
#[derive(Clone, Copy, Debug)]
pub struct DeltaTensors<'a> {
    /// Rows of projections `[B, T, n]`, n at least [`DeltaRule::width`].
    pub rows: &'a Handle,
    /// The convolution `[taps, channels]`, f32.
    pub convolution: &'a Handle,
    /// The decay of each v head `[Hv]`, f32.
    pub decays: &'a Handle,
    /// What is added to the step of each v head `[Hv]`, f32.
    pub biases: &'a Handle,
    /// The weight of the norm `[128]`, f32.
    pub norm: &'a Handle,
    /// The rows of q, k and v before the first token `[B, taps - 1, channels]`.
    pub last: &'a Handle,
    /// The state `[B, Hv, 128, 128]`, f32.
    pub state: &'a Handle,
    /// The result `[B, T, Hv * 128]`, which is written.
    pub out: &'a Handle,
    /// The rows of q, k and v before the next token, written; as `last`.
    pub kept: &'a Handle,
    /// The state after the last token, written; as `state`.
    pub new_state: &'a Handle,
    /// Scratch: q, k and v `[B, T, channels]`.
    pub mixed: &'a Handle,
    /// Scratch: decays and betas `[2, B, Hv, T]`, f32.
    pub gates: &'a Handle,
    /// Scratch: the inverses of the chunks `[B, Hv, chunks * 64, 64]`.
    pub solved: &'a Handle,
    /// Scratch: products of queries and keys, as `solved`.
    pub scores: &'a Handle,
    /// Scratch: sums of decays `[B, Hv, chunks, 64]`, f32.
    pub cumulative: &'a Handle,
}

impl ReadyDeltaRule {
    /// Checks and prepares the kernels. `image` is a cubin, PTX, or CUDA C++, which CubeCL compiles at the first
    /// launch, each kernel alone.
    ///
    /// # Errors
    /// [`LaunchError::Image`] if `image` is none of these, [`LaunchError::Unfit`] if a field of `rule` is invalid.
    pub fn new(rule: DeltaRule, image: &[u8]) -> Result<Self, LaunchError> {
        let is_text = matches!(Code::of_cuda(image), Some(Code::Cuda(_)));
        let one = |number: usize| {
            let (_, stage) = rule.stages()[number];
            let launch = [stage.threads, stage.shared_bytes];
            let only = format!("#define {} {number}\n", DeltaRule::ONLY);
            let alone = [only.as_bytes(), image].concat();
            let image = if is_text { alone.as_slice() } else { image };
            Image::beside_attention(rule.check(), &stage.entry, launch, image).map(Arc::new)
        };
        let [prepare, chunk, walk, finish] = [0, 1, 2, 3].map(one);
        Ok(Self {
            images: [prepare?, chunk?, walk?, finish?],
            rule: Arc::new(rule),
        })
    }

    /// What the kernels were made for.
    pub fn rule(&self) -> &DeltaRule {
        &self.rule
    }

    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    pub(super) fn images(&self) -> impl Iterator<Item = &Arc<Image>> {
        self.images.iter()
    }

    /// Whether the kernels can compute this: there are at most 65535 sequences and 2^30 - 1 tokens, at least one of
    /// each; no tensor has more than 2^39 elements; and rows start at multiples of 16 bytes.
    pub fn takes(&self, tokens: &DeltaTokens) -> bool {
        let (batch, length) = (u64::from(tokens.batch), u64::from(tokens.tokens));
        let rows = (batch * length).saturating_mul(self.rule.channels().into());
        let aligned =
            tokens.row_batch.is_multiple_of(PIECE.into()) && tokens.row_token.is_multiple_of(PIECE);
        (1..=u64::from(u16::MAX)).contains(&batch)
            && (1..1 << 30).contains(&length)
            && aligned
            && tokens.row_token < 1 << 31
            && rows.max(tokens.row_batch) <= MOST_ELEMENTS
    }

    /// Launches the four kernels on the stream of `client`, without waiting for them.
    ///
    /// # Errors
    /// [`LaunchError::Short`] if a tensor is shorter than its shape, [`LaunchError::Unsupported`] if
    /// [`ReadyDeltaRule::takes`] returns false. Nothing is launched then.
    pub fn launch<R: Launches>(
        &self,
        client: &ComputeClient<R>,
        tokens: &DeltaTokens,
        tensors: &DeltaTensors<'_>,
    ) -> Result<(), LaunchError> {
        if !self.takes(tokens) {
            return Err(LaunchError::Unsupported {
                device: Device::Cuda,
                key: self.rule.walk.entry.clone(),
                what: "a form for rows that do not start at multiples of 16 bytes, or for so many"
                    .into(),
            });
        }
        self.check_lengths(tokens, tensors)?;
        let Self { rule, images } = self;
        let [prepare, chunk, walk, finish] = images;
        let t = tensors;
        let (batch, chunks) = (tokens.batch, tokens.tokens.div_ceil(DeltaRule::CHUNK));
        let pieces = |elements: u32, threads: u32| elements.div_ceil(PIECE * threads);
        // SAFETY: every length was checked against its shape, and each grid covers its tensors once.
        let launch = |image: &Arc<Image>, grid: [u32; 3], maps, buffers: &[&Handle]| unsafe {
            let buffers = buffers.iter().map(|buffer| (*buffer).clone().binding());
            let arguments = KernelArguments::new()
                .with_tensor_maps(maps)
                .with_buffers(buffers.collect())
                .with_info(by_value(&words(tokens)));
            let [x, y, z] = grid;
            client.launch_unchecked(R::task(image), CubeCount::Static(x, y, z), arguments);
        };

        let columns = pieces(rule.channels(), rule.prepare.threads);
        launch(
            prepare,
            [
                tokens.tokens.div_ceil(DeltaRule::PREPARE_TOKENS),
                columns + 1,
                batch,
            ],
            Vec::new(),
            &[
                t.rows,
                t.convolution,
                t.decays,
                t.biases,
                t.last,
                t.mixed,
                t.kept,
                t.gates,
            ],
        );
        launch(
            chunk,
            [chunks, rule.k_heads, batch],
            self.maps::<R>(tokens, tensors, &[Mapped::K, Mapped::Q]),
            &[t.gates, t.solved, t.scores, t.cumulative],
        );
        launch(
            walk,
            [HALVES, rule.v_heads, batch],
            self.maps::<R>(tokens, tensors, &Mapped::ALL),
            &[t.cumulative, t.state, t.new_state],
        );
        launch(
            finish,
            [
                tokens.tokens.div_ceil(DeltaRule::FINISH_TOKENS),
                pieces(rule.values(), rule.finish.threads),
                batch,
            ],
            Vec::new(),
            &[t.rows, t.norm, t.out],
        );
        Ok(())
    }

    /// Checks that every tensor has the bytes of its shape; [`ReadyDeltaRule::takes`] keeps 64 bits from overflowing.
    fn check_lengths(&self, tokens: &DeltaTokens, t: &DeltaTensors<'_>) -> Result<(), LaunchError> {
        let rule = &self.rule;
        let wide = u64::from;
        let (batch, length) = (wide(tokens.batch), wide(tokens.tokens));
        let (heads, channels) = (wide(rule.v_heads), wide(rule.channels()));
        let dim = wide(DeltaRule::HEAD_DIM);
        let reach = (batch - 1) * tokens.row_batch
            + (length - 1) * wide(tokens.row_token)
            + wide(rule.width());
        let kept = batch * wide(rule.taps - 1) * channels;
        let state = batch * heads * dim * dim;
        let in_chunks = batch * heads * length.next_multiple_of(wide(DeltaRule::CHUNK));
        let matrices = in_chunks * wide(DeltaRule::CHUNK);
        for (name, handle, elements, bytes) in [
            ("rows", t.rows, reach, 2),
            ("convolution", t.convolution, wide(rule.taps) * channels, 4),
            ("decays", t.decays, heads, 4),
            ("biases", t.biases, heads, 4),
            ("norm", t.norm, dim, 4),
            ("last", t.last, kept, 2),
            ("state", t.state, state, 4),
            ("out", t.out, batch * length * heads * dim, 2),
            ("kept", t.kept, kept, 2),
            ("new state", t.new_state, state, 4),
            ("mixed", t.mixed, batch * length * channels, 2),
            ("gates", t.gates, 2 * batch * heads * length, 4),
            ("solved", t.solved, matrices, 2),
            ("scores", t.scores, matrices, 2),
            ("cumulative", t.cumulative, in_chunks, 4),
        ] {
            long_enough(name, handle.size_in_used(), elements * bytes)?;
        }
        Ok(())
    }

    /// The tensor maps of these tensors.
    fn maps<R: Launches>(
        &self,
        tokens: &DeltaTokens,
        t: &DeltaTensors<'_>,
        which: &[Mapped],
    ) -> Vec<TensorMapBinding> {
        let rule = &self.rule;
        let dim = DeltaRule::HEAD_DIM;
        // `heads` heads of a row of `row` elements that begin at element `first`.
        let in_rows = |tensor: &Handle, heads: u32, first: u32, row: u32| {
            let map = Map {
                dtype: rule.dtype,
                shape: [tokens.batch, heads, tokens.tokens, dim],
                strides: [
                    u64::from(tokens.tokens) * u64::from(row),
                    dim.into(),
                    row.into(),
                    1,
                ],
                tile: BOX,
            };
            let start = u64::from(first) * u64::from(rule.dtype.bytes());
            (map, tensor.clone().offset_start(start))
        };
        let matrices = |tensor: &Handle| {
            let rows = tokens.tokens.next_multiple_of(DeltaRule::CHUNK);
            let of_head = u64::from(rows) * u64::from(DeltaRule::CHUNK);
            let map = Map {
                dtype: rule.dtype,
                shape: [tokens.batch, rule.v_heads, rows, DeltaRule::CHUNK],
                strides: [
                    of_head * u64::from(rule.v_heads),
                    of_head,
                    DeltaRule::CHUNK.into(),
                    1,
                ],
                tile: BOX,
            };
            (map, tensor.clone())
        };
        let (channels, keys) = (rule.channels(), rule.k_heads * dim);
        let of = |which: &Mapped| match which {
            Mapped::K => in_rows(t.mixed, rule.k_heads, keys, channels),
            Mapped::Q => in_rows(t.mixed, rule.k_heads, 0, channels),
            Mapped::V => in_rows(t.mixed, rule.v_heads, 2 * keys, channels),
            Mapped::Solved => matrices(t.solved),
            Mapped::Scores => matrices(t.scores),
            Mapped::Out => in_rows(t.out, rule.v_heads, 0, rule.values()),
        };
        let (maps, tensors): (Vec<_>, Vec<_>) = which.iter().map(of).unzip();
        R::tensor_maps(&maps, &tensors)
    }
}

/// What is copied at a time: 64 tokens by 128 bytes.
const BOX: [u32; 4] = [1, 1, DeltaRule::CHUNK, 64];

/// A tensor that kernels copy by a tensor map.
#[derive(Clone, Copy, Debug)]
enum Mapped {
    K,
    Q,
    V,
    Solved,
    Scores,
    Out,
}

impl Mapped {
    /// Those of `walk`, in the order of its arguments.
    const ALL: [Self; 6] = [
        Self::K,
        Self::Q,
        Self::V,
        Self::Solved,
        Self::Scores,
        Self::Out,
    ];
}

/// What all kernels take by value.
fn words(tokens: &DeltaTokens) -> [u32; 6] {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves of a number"
    )]
    let row_batch = [tokens.row_batch as u32, (tokens.row_batch >> 32) as u32];
    let chunks = tokens.tokens.div_ceil(DeltaRule::CHUNK);
    [
        row_batch[0],
        row_batch[1],
        tokens.tokens,
        chunks,
        tokens.row_token,
        tokens.epsilon_bits,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use butterfly_ir::Dtype;
    use butterfly_ir::model::LinearShape;

    fn ready() -> ReadyDeltaRule {
        let shape = LinearShape {
            k_heads: 16,
            v_heads: 32,
            k_dim: 128,
            v_dim: 128,
            taps: 4,
            tiled: false,
        };
        let stage = |entry: &str, threads| butterfly_ir::DeltaStage {
            entry: entry.into(),
            threads,
            shared_bytes: 0,
        };
        let rule = DeltaRule {
            prepare: stage("prepare", 128),
            chunk: stage("chunk", 128),
            walk: stage("walk", 160),
            finish: stage("finish", 256),
            ..DeltaRule::of(Dtype::Bf16, &shape).expect("heads of 128 elements")
        };
        ReadyDeltaRule::new(rule, b"text").expect("a valid rule")
    }

    #[test]
    fn sizes_that_the_kernels_count() {
        let ready = ready();
        let right = DeltaTokens {
            batch: 2,
            tokens: 1000,
            row_batch: 12_352_000,
            row_token: 12_352,
            epsilon_bits: 1e-6f32.to_bits(),
        };
        assert!(ready.takes(&right));
        for wrong in [
            DeltaTokens { batch: 0, ..right },
            DeltaTokens {
                batch: 1 << 16,
                ..right
            },
            DeltaTokens { tokens: 0, ..right },
            DeltaTokens {
                tokens: 1 << 30,
                ..right
            },
            DeltaTokens {
                batch: 1 << 15,
                tokens: 1 << 20,
                ..right
            },
            DeltaTokens {
                row_batch: 4,
                ..right
            },
            DeltaTokens {
                row_batch: 1 << 40,
                ..right
            },
            DeltaTokens {
                row_token: 12_350,
                ..right
            },
            DeltaTokens {
                row_token: 1 << 31,
                ..right
            },
        ] {
            assert!(!ready.takes(&wrong), "{wrong:?}");
        }
    }

    /// CubeCL compiles the text for each entry point.
    #[test]
    fn a_text_declares_one_kernel_at_a_time() {
        for (number, image) in ready().images.iter().enumerate() {
            let Code::Cuda(text) = &*image.code else {
                panic!("{image:?}");
            };
            assert_eq!(*text, format!("#define BUTTERFLY_ONLY {number}\ntext"));
        }
    }

    #[test]
    fn values_lie_as_the_kernels_declare_them() {
        let tokens = DeltaTokens {
            batch: 1,
            tokens: 65,
            row_batch: (7 << 32) + 8,
            row_token: 16,
            epsilon_bits: 9,
        };
        assert_eq!(words(&tokens), [8, 7, 65, 2, 16, 9]);
    }
}
