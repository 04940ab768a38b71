//! Why a config is refused.

/// The first thing that is wrong with a config, or with the layers a pattern names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error(
        "{file}: line {line}, column {column}: {message}: give the config.json of a Hugging Face model"
    )]
    Syntax {
        /// The config.
        file: String,
        /// From 1.
        line: usize,
        /// From 1; 0 for the end of the line before.
        column: usize,
        /// The message of the JSON parser.
        message: String,
    },
    /// JSON, but not an object.
    #[error("{file}: holds {given}: give a JSON object, the config.json of a Hugging Face model")]
    NotAnObject {
        /// The config.
        file: String,
        /// The value that is there instead, as JSON.
        given: String,
    },
    /// A field without a default is absent or null.
    #[error("{file}: `{field}` is missing: give {expected}")]
    Missing {
        /// The config.
        file: String,
        /// Full path of the field.
        field: String,
        /// What to write there.
        expected: String,
    },
    /// A value of the wrong type, or out of range.
    #[error("{file}: `{field}` is {given}: give {expected}")]
    Value {
        /// The config.
        file: String,
        /// Full path of the field.
        field: String,
        /// What is there, as JSON.
        given: String,
        /// What to write there.
        expected: String,
    },
    /// The number of q heads is not a multiple of the number of kv heads.
    #[error(
        "{file}: `{field}` is {q_heads}, `{kv_field}` is {kv_heads}: give a number of heads that is a multiple of the kv heads"
    )]
    Heads {
        /// The config.
        file: String,
        /// Full path of the number of q heads.
        field: String,
        /// Query heads.
        q_heads: u32,
        /// Full path of the number of kv heads.
        kv_field: String,
        /// Key and value heads, given or by default.
        kv_heads: u32,
    },
    /// No kernel takes heads of this size.
    #[error("{file}: `{field}` is {given}: give a head size that is a multiple of 8, at most 576")]
    HeadDim {
        /// The config.
        file: String,
        /// Full path of the field, or the formula over fields, that gives the size.
        field: String,
        /// The size.
        given: u64,
    },
    /// Heads that share one latent vector cannot choose blocks apart.
    #[error(
        "`routed` is not supported beside `per_head` for latent attention, whose heads share keys and choose blocks together; use one pattern for all heads of a layer, or no `routed`"
    )]
    LatentHeads,
    /// A case of `per_head` or `per_layer` names more than the model has.
    #[error(
        "the pattern names {what} {named}, but the model has {count}, counted from 0; leave it out of the pattern, or give the model that it was made for"
    )]
    Named {
        /// `kv head` or `layer`.
        what: &'static str,
        /// The largest index that a case names.
        named: u32,
        /// How many the model has.
        count: u32,
    },
    /// The size of a head is not given and cannot be derived.
    #[error(
        "{file}: `{field}` is {hidden}, not a multiple of `{heads_field}`, which is {heads}: give a hidden size that divides into heads"
    )]
    HiddenSize {
        /// The config.
        file: String,
        /// Full path of the hidden size.
        field: String,
        /// Its value.
        hidden: u32,
        /// Full path of the number of heads.
        heads_field: String,
        /// Its value.
        heads: u32,
    },
    /// One entry for each layer is needed.
    #[error(
        "{file}: `{field}` has {given} entries, `{count_field}` is {layers}: give one entry for each layer"
    )]
    LayerCount {
        /// The config.
        file: String,
        /// Full path of the list.
        field: String,
        /// Its length.
        given: usize,
        /// Full path of the number of layers.
        count_field: String,
        /// Number of layers.
        layers: u32,
    },
    /// A valid value that is not supported.
    #[error("{file}: `{field}` is {given}, which is not supported: give {expected}")]
    Unsupported {
        /// The config.
        file: String,
        /// Full path of the field.
        field: String,
        /// What is there, as JSON.
        given: String,
        /// What is supported.
        expected: String,
    },
    /// A pattern names a layer that the model does not have.
    #[error("swapped layer {layer} does not exist: give layers below {layers}")]
    NoSuchLayer {
        /// The layer.
        layer: u32,
        /// How many the model has.
        layers: usize,
    },
    /// A pattern names a layer without softmax attention.
    #[error("swapped layer {layer} is linear attention: give full-attention layers only ({full})")]
    LinearLayer {
        /// The layer.
        layer: u32,
        /// The layers that can be swapped, as text.
        full: String,
    },
}
