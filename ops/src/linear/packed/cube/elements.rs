//! Elements of a row of a weight, eight at a time, however it is stored.

use super::super::super::Storage;
use super::super::Packed;
use super::bits::{byte, e4m3, e8m0, float, nibble, number, of_two, word};
use super::blocks;
use super::{Format, TOGETHER};
use ::cubecl::prelude::*;

/// Elements `8 * group ..` of a row of the weight.
#[cube]
pub(crate) fn eight(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    if comptime!(matches!(format.storage, Storage::Dense(_))) {
        dense(weight, row, group, out, format);
    } else {
        packed(weight, scales, biases, row, group, out, format);
    }
}

/// Floats that are stored as they are.
#[cube]
fn dense(
    weight: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let start = row * comptime!(format.row / 4) + group * comptime!(format.dense_size() * 2);
    if comptime!(format.dense_size() == 4) {
        #[unroll]
        for i in 0..8u32 {
            out[i as usize] = f32::reinterpret(weight[(start + i) as usize]);
        }
    } else {
        #[unroll]
        for i in 0..4u32 {
            let two = weight[(start + i) as usize];
            if comptime!(format.is_bf16()) {
                out[comptime!(2 * i as usize)] = f32::reinterpret(two << 16u32);
                out[comptime!(2 * i as usize + 1)] = f32::reinterpret(two & 0xffff_0000u32);
            } else {
                out[comptime!(2 * i as usize)] = float(two & 0xffffu32, 10u32, 5u32);
                out[comptime!(2 * i as usize + 1)] = float(two >> 16u32, 10u32, 5u32);
            }
        }
    }
}

#[cube]
fn packed(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let packed = comptime!(format.packed());
    let start = row * comptime!(format.row);
    let groups = comptime!(packed.block().0 as u32 / TOGETHER);
    let at = start + group / groups * comptime!(packed.block().1 as u32);
    let within = group % groups;
    if comptime!(packed == Packed::Q4_0) {
        blocks::q4(weight, at, within, out, false);
    } else if comptime!(packed == Packed::Q4_1) {
        blocks::q4(weight, at, within, out, true);
    } else if comptime!(packed == Packed::Q5_0) {
        blocks::q5(weight, at, within, out, false);
    } else if comptime!(packed == Packed::Q5_1) {
        blocks::q5(weight, at, within, out, true);
    } else if comptime!(packed == Packed::Q8_0) {
        blocks::q8(weight, at, within, out);
    } else if comptime!(packed == Packed::Q2K) {
        blocks::q2k(weight, at, within, out);
    } else if comptime!(packed == Packed::Q3K) {
        blocks::q3k(weight, at, within, out);
    } else if comptime!(packed == Packed::Q4K) {
        blocks::q45k(weight, at, within, out, false);
    } else if comptime!(packed == Packed::Q5K) {
        blocks::q45k(weight, at, within, out, true);
    } else if comptime!(packed == Packed::Q6K) {
        blocks::q6k(weight, at, within, out);
    } else if comptime!(packed == Packed::Mxfp4) {
        blocks::mxfp4(weight, at, within, out);
    } else if comptime!(packed == Packed::Microscaled) {
        let scale = e8m0(byte(
            scales,
            row * comptime!(format.columns / 32) + group / 4u32,
        ));
        blocks::e2m1s(word(weight, start + group * 4u32), scale, out);
    } else if comptime!(matches!(packed, Packed::Float8 { .. })) {
        float8(weight, scales, row, group, out, format);
    } else {
        affine(weight, scales, biases, row, group, out, format);
    }
}

/// Floats of 8 bits, with a scale for each square of 128 rows and columns.
#[cube]
fn float8(
    weight: &Array<u32>,
    scales: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let across = comptime!(format.columns.div_ceil(128));
    let mut square = row / 128u32;
    if comptime!(format.rows > 0) {
        // Each matrix begins with squares of its own.
        let down = comptime!(format.rows.div_ceil(128));
        square = row / comptime!(format.rows) * down + row % comptime!(format.rows) / 128u32;
    }
    let at = square * across + group / 16u32;
    let scale = number(scales, at, comptime!(format.groups().scales));
    let low = word(weight, row * comptime!(format.row) + group * TOGETHER);
    let high = word(
        weight,
        row * comptime!(format.row) + group * TOGETHER + 4u32,
    );
    #[unroll]
    for i in 0..8u32 {
        out[i as usize] = e4m3(of_two(low, high, i)) * scale;
    }
}

/// Integers of 2, 4 or 8 bits, each group of elements with a scale and a bias.
#[cube]
fn affine(
    weight: &Array<u32>,
    scales: &Array<u32>,
    biases: &Array<u32>,
    row: u32,
    group: u32,
    out: &mut Array<f32>,
    #[comptime] format: Format,
) {
    let bits = comptime!(format.groups().bits);
    let of_group = comptime!(format.groups().group);
    let at = row * comptime!(format.columns / of_group) + group * TOGETHER / of_group;
    let scale = number(scales, at, comptime!(format.groups().scales));
    let bias = number(biases, at, comptime!(format.groups().scales));
    let start = row * comptime!(format.row) + group * bits;
    let low = word(weight, start);
    #[unroll]
    for i in 0..8u32 {
        let quant = if comptime!(bits == 2) {
            (low >> comptime!(2 * i)) & 3u32
        } else if comptime!(bits == 4) {
            nibble(low, i)
        } else {
            of_two(low, word(weight, start + 4u32), i)
        };
        out[i as usize] = f32::cast_from(quant) * scale + bias;
    }
}
