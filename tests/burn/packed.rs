//! Packed weights: each format unpacked and multiplied on every backend, against values that other
//! implementations give (`tests/fixtures/packed/make.py`).

use super::{Fused, Vulkan};
use burn::prelude::*;
use burn::tensor::{DType, Distribution, TensorPrimitive};
use burn_flex::Flex;
use burn_wgpu::WgpuDevice;
use butterfly::ops::{
    Embed, GroupedProducts, Operation, OperationError, Packed, Part, Products, Project, Rows,
    Storage,
};
use butterfly::{AttentionBackend, Plan};
use butterfly_ir::Dtype;
use butterfly_tests::fixture;
use safetensors::SafeTensors;

/// Every format, with the file that holds a weight in it.
const FORMATS: [(&str, Packed); 18] = [
    ("q4_0", Packed::Q4_0),
    ("q4_1", Packed::Q4_1),
    ("q5_0", Packed::Q5_0),
    ("q5_1", Packed::Q5_1),
    ("q8_0", Packed::Q8_0),
    ("q2_k", Packed::Q2K),
    ("q3_k", Packed::Q3K),
    ("q4_k", Packed::Q4K),
    ("q5_k", Packed::Q5K),
    ("q6_k", Packed::Q6K),
    ("mxfp4", Packed::Mxfp4),
    ("microscaled", Packed::Microscaled),
    ("affine_2_32_f32", affine(2, 32, Dtype::F32)),
    ("affine_4_32_f16", affine(4, 32, Dtype::F16)),
    ("affine_4_64_bf16", affine(4, 64, Dtype::Bf16)),
    ("affine_4_128_f32", affine(4, 128, Dtype::F32)),
    ("affine_8_128_bf16", affine(8, 128, Dtype::Bf16)),
    ("float8", Packed::float8(Dtype::Bf16)),
];

/// Rows of products: one, a few on either side of a power of two, and many.
const ROWS: [usize; 6] = [1, 2, 3, 8, 9, 70];

const fn affine(bits: u32, group: u32, scales: Dtype) -> Packed {
    Packed::Affine {
        bits,
        group,
        scales,
    }
}

/// A packed weight [rows, columns], and the values of some of its rows.
struct Weight {
    packed: Packed,
    rows: usize,
    columns: usize,
    tensors: Vec<Vec<u8>>,
    /// The rows whose values are known.
    known: Vec<usize>,
    values: Vec<f32>,
}

impl Weight {
    fn read(name: &str, packed: Packed) -> Self {
        let path = fixture(&format!("packed/{name}.safetensors"));
        let bytes = std::fs::read(&path).expect("a fixture");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let values = file.tensor("values").expect("values");
        let columns = values.shape()[1];
        let tensors = packed.names().iter().map(|name| {
            let tensor = file.tensor(name).expect("a tensor");
            tensor.data().to_vec()
        });
        let tensors: Vec<Vec<u8>> = tensors.collect();
        let rows = tensors[0].len() / packed.row_bytes(columns);
        let words = values.data().as_chunks::<4>().0.iter();
        let known = match rows == values.shape()[0] {
            true => (0..rows).collect(),
            // Rows on either side of the border between two squares.
            false => vec![0, 127, 128, 129],
        };
        Self {
            packed,
            rows,
            columns,
            tensors,
            known,
            values: words.map(|b| f32::from_le_bytes(*b)).collect(),
        }
    }

    fn part(&self) -> Part {
        Part {
            storage: Storage::Packed(self.packed),
            rows: self.rows,
        }
    }

    /// Its tensors on a device, each with as many bytes more as make words.
    fn upload<B: AttentionBackend>(
        &self,
        device: &B::Device,
    ) -> Vec<burn::tensor::ops::FloatTensor<B>> {
        let upload = |bytes: &Vec<u8>| {
            let mut bytes = bytes.clone();
            if !B::ON_HOST {
                bytes.resize(bytes.len().next_multiple_of(4), 0xff);
            }
            let length = bytes.len();
            let data = TensorData::from_bytes_vec(bytes, [length], DType::U8);
            B::integers(B::int_from_data(data, device))
        };
        self.tensors.iter().map(upload).collect()
    }
}

fn numbers<B: Backend, const D: usize>(x: burn::tensor::ops::FloatTensor<B>) -> Vec<f32> {
    super::numbers(&Tensor::<B, D>::from_primitive(TensorPrimitive::Float(x)))
}

fn run<B: AttentionBackend>(
    operation: Operation,
    inputs: Vec<burn::tensor::ops::FloatTensor<B>>,
) -> Result<burn::tensor::ops::FloatTensor<B>, OperationError> {
    let outputs = butterfly::run::<B>(&operation.into(), inputs)?;
    Ok(outputs.into_iter().next().expect("one output"))
}

/// On the host, values are those of the other implementation to the bit.
#[test]
fn values_are_exact() {
    for (name, packed) in FORMATS {
        let weight = Weight::read(name, packed);
        let tensors: Vec<&[u8]> = weight.tensors.iter().map(Vec::as_slice).collect();
        let shape = [weight.rows, weight.columns];
        let rows = Rows::new(Storage::Packed(packed), shape, &tensors).expect(name);
        let mut got = vec![0.0; weight.columns];
        for (row, want) in weight
            .known
            .iter()
            .zip(weight.values.chunks(weight.columns))
        {
            rows.unpack(*row, &mut got);
            for (i, (got, want)) in got.iter().zip(want).enumerate() {
                let equal = got.to_bits() == want.to_bits() || (*got == 0.0 && *want == 0.0);
                assert!(equal, "{name}[{row}, {i}]: {got:e}, not {want:e}");
            }
        }
    }
}

/// All 256 floats of 8 bits, NaN among them.
#[test]
fn floats_of_8_bits() {
    let packed = Packed::float8(Dtype::F32);
    let want = butterfly_tests::floats(&fixture("packed/e4m3.safetensors"), "values");
    let bytes: Vec<u8> = (0..=255).collect();
    let ones = [1.0f32.to_le_bytes(), 1.0f32.to_le_bytes()].concat();
    let rows = Rows::new(Storage::Packed(packed), [1, 256], &[&bytes, &ones]).expect("rows");
    let mut got = vec![0.0; 256];
    rows.unpack(0, &mut got);
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        assert!(
            got == want || (got.is_nan() && want.is_nan()),
            "{i}: {got}, not {want}"
        );
    }
}

/// Rows by their numbers, in any order, equal the known values up to one rounding of a product.
fn embeds<B: AttentionBackend>(device: &B::Device) {
    for (name, packed) in FORMATS {
        let weight = Weight::read(name, packed);
        let order: Vec<i32> = weight.known.iter().rev().map(|row| *row as i32).collect();
        let count = order.len();
        let ids = Tensor::<B, 1, Int>::from_data(TensorData::new(order, [count]), device);
        let ids = B::integers(ids.reshape([1, count]).into_primitive());
        let operation = Operation::Embed(Embed {
            table: packed,
            rows: weight.rows,
            columns: weight.columns,
            dtype: DType::F32,
        });
        let inputs = [ids].into_iter().chain(weight.upload::<B>(device));
        let got = numbers::<B, 3>(run::<B>(operation, inputs.collect()).expect(name));
        let want = weight.values.chunks(weight.columns).rev().flatten();
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let off = (got - want).abs();
            assert!(
                off <= 1e-6 * want.abs() + 1e-7,
                "{name} {i}: {got}, not {want}"
            );
        }
    }
}

/// Products of `rows` rows, with a weight of two parts of which one is dense: against
/// sums in f64 of the known values.
fn multiplies<B: AttentionBackend>(
    device: &B::Device,
    rows: &[usize],
    (dtype, most): (DType, f64),
) {
    let grouped = Plan::dense().grouped();
    for (name, packed) in FORMATS {
        let weight = Weight::read(name, packed);
        let k = weight.columns;
        let dense = Tensor::<B, 2>::random([3, k], Distribution::Default, (device, dtype));
        for &m in rows {
            let normal = Distribution::Normal(0.0, 1.0);
            let x = Tensor::<B, 2>::random([m, k], normal, (device, dtype));
            let dense_part = Part {
                storage: Storage::Dense(dtype),
                rows: 3,
            };
            let operation = Operation::Project(Project {
                parts: [dense_part, weight.part()].into(),
                wide: false,
                gate: None,
                products: Products::default(),
                grouped: grouped.clone(),
            });
            let tensor = |x: &Tensor<B, 2>| x.clone().into_primitive().tensor();
            let inputs = [tensor(&x), tensor(&dense)].into_iter();
            let inputs = inputs.chain(weight.upload::<B>(device));
            let y = numbers::<B, 2>(run::<B>(operation, inputs.collect()).expect(name));
            let n = 3 + weight.rows;
            assert_eq!(y.len(), m * n);
            let (x, dense) = (super::numbers(&x), super::numbers(&dense));
            let known = weight.known.iter().map(|row| 3 + row);
            let known = known.zip(weight.values.chunks(k));
            let columns = (0..3).zip(dense.chunks(k)).chain(known);
            for (column, w) in columns {
                for (i, x) in x.chunks(k).enumerate() {
                    let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
                    let (want, size): (Vec<f64>, Vec<f64>) = terms.map(|t| (t, t.abs())).unzip();
                    let (want, size): (f64, f64) = (want.iter().sum(), size.iter().sum());
                    let got = f64::from(y[i * n + column]);
                    let off = (got - want).abs();
                    assert!(
                        off <= most * size + 1e-7,
                        "{name} {m} {column}: {got}, not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn packed_weights_on_every_backend() {
    let cpu = Default::default();
    embeds::<Flex>(&cpu);
    multiplies::<Flex>(&cpu, &ROWS, (DType::F32, 1e-6));
    multiplies::<Flex>(&cpu, &ROWS, (DType::BF16, 4e-3));
    // Each kernel is compiled, which takes longer than to run it.
    embeds::<Vulkan>(&WgpuDevice::Cpu);
    multiplies::<Vulkan>(&WgpuDevice::Cpu, &[3, 70], (DType::F32, 1e-6));
    multiplies::<Vulkan>(&WgpuDevice::Cpu, &[1], (DType::F16, 2e-3));
    embeds::<Fused>(&WgpuDevice::Cpu);
}

#[test]
#[ignore = "needs an NVIDIA GPU: cargo test -p butterfly --test burn -- --ignored cuda"]
fn cuda_packed_weights() {
    type Cuda = butterfly::backends::Cuda;
    let device = Default::default();
    embeds::<Cuda>(&device);
    multiplies::<Cuda>(&device, &ROWS, (DType::F32, 1e-6));
    multiplies::<Cuda>(&device, &ROWS, (DType::F16, 2e-3));
    multiplies::<Cuda>(&device, &ROWS, (DType::BF16, 1e-2));
}

/// What does not fit is an error that names the tensor.
#[test]
fn packed_weights_that_do_not_fit() {
    let device = Default::default();
    let weight = Weight::read("affine_4_64_bf16", affine(4, 64, Dtype::Bf16));
    let x = || {
        let x = Tensor::<Flex, 2>::ones([1, weight.columns], &device);
        x.into_primitive().tensor()
    };
    let said = |parts: Vec<Part>, inputs: Vec<_>| {
        let operation = Operation::Project(Project {
            parts: parts.into(),
            wide: false,
            gate: None,
            products: Products::default(),
            grouped: GroupedProducts::default(),
        });
        let result = run::<Flex>(operation, inputs);
        result.expect_err("refused").to_string()
    };
    let mut inputs = vec![x()];
    inputs.extend(weight.upload::<Flex>(&device));
    let short = Part {
        rows: weight.rows + 1,
        ..weight.part()
    };
    let error = said(vec![short], inputs.clone());
    assert!(
        error.contains("`weight`") && error.contains("bytes"),
        "{error}"
    );
    inputs.pop();
    let error = said(vec![weight.part()], inputs);
    assert!(
        error.contains("takes 4 tensors (x, weight, scales, biases)"),
        "{error}"
    );
    let odd = Part {
        storage: Storage::Packed(Packed::Q4K),
        rows: 1,
    };
    let x = Tensor::<Flex, 2>::ones([1, 100], &device)
        .into_primitive()
        .tensor();
    let bytes = weight.upload::<Flex>(&device).remove(0);
    let error = said(vec![odd], vec![x, bytes]);
    assert!(
        error.contains("100 elements") && error.contains("Q4_K"),
        "{error}"
    );
}
