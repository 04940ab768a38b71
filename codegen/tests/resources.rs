//! Registers, stack and spills: compares NVRTC's log with the machine code.

#[path = "support/spec.rs"]
mod spec;

use butterfly_codegen::{emit, nvrtc, ptx};
use butterfly_ir::{Dtype, KernelSpec, Resources, Role, Sm, Target};
use object::elf::FileHeader64;
use object::read::elf::ElfFile;
use object::{Endianness, Object, ObjectSection, ObjectSymbol, SymbolIndex};
use spec::spec;

const ENTRY: &str = "butterfly_attention";

/// Attributes in the section `.nv.info` of a cubin; the payload is a symbol and a number.
const FRAME_SIZE: u8 = 0x11;
const REGISTERS: u8 = 0x2f;

const SM_80: Target = Target::Cuda(Sm {
    version: 80,
    arch_specific: false,
});
const SM_90A: Target = Target::Cuda(Sm {
    version: 90,
    arch_specific: true,
});

fn nvrtc() -> &'static nvrtc::Nvrtc {
    let search = nvrtc::find();
    search.nvrtc.as_ref().unwrap_or_else(|| {
        panic!(
            "no NVRTC; scripts/test installs and names one: {:?}",
            search.looked
        )
    })
}

/// The attribute of our kernel in a cubin.
fn attribute(cubin: &[u8], wanted: u8) -> u32 {
    let elf = ElfFile::<FileHeader64<Endianness>>::parse(cubin).expect("an ELF");
    let section = elf.section_by_name(".nv.info").expect("a section");
    let mut rest = section.data().expect("data");
    let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().expect("a word"));
    while let [format, attribute, low, high, after @ ..] = rest {
        // Only format 4 has a payload after its header, which gives the payload's size.
        let size = match format {
            4 => usize::from(u16::from_le_bytes([*low, *high])),
            _ => 0,
        };
        let (payload, next) = after.split_at(size);
        rest = next;
        if *attribute == wanted {
            let symbol = SymbolIndex(word(payload) as usize);
            let symbol = elf.symbol_by_index(symbol).expect("a symbol");
            if symbol.name() == Ok(ENTRY) {
                return word(&payload[4..]);
            }
        }
    }
    panic!("no attribute {wanted:#x}");
}

fn agree(resources: Resources, cubin: &[u8], label: &str) {
    assert_eq!(resources.registers, attribute(cubin, REGISTERS), "{label}");
    assert_eq!(
        resources.stack_bytes,
        attribute(cubin, FRAME_SIZE),
        "{label}"
    );
}

#[test]
fn the_log_and_the_machine_code_agree() {
    for target in [SM_80, SM_90A] {
        for (role, dtype) in [
            (Role::Prefill, Dtype::F32),
            (Role::Prefill, Dtype::Bf16),
            (Role::Decode, Dtype::F16),
        ] {
            let kernel = emit(&spec(role, dtype, 128), target).expect("emits");
            let resources = kernel.resources.expect("a log that is understood");
            let (_, cubin) = kernel.files.last().expect("files");
            agree(resources, cubin, &format!("{target} {role:?} {dtype:?}"));
        }
    }
}

/// Launch bounds for four times as many threads leave a quarter of the registers, which spills.
#[test]
fn spills_are_seen() {
    let spec = spec(Role::Decode, Dtype::F16, 128);
    let kernel = emit(&spec, SM_80).expect("emits");
    let text = String::from_utf8(kernel.files[0].1.clone()).expect("utf-8");
    let crowded = text.replace("__launch_bounds__(512, 1)", "__launch_bounds__(1024, 2)");
    assert_ne!(text, crowded);
    let compiled = nvrtc().compile(&crowded, "sm_80").expect("compiles");
    let resources = compiled.resources.expect("a log that is understood");
    assert_eq!(resources.registers, 32);
    assert!(resources.spill_store_bytes > 0 && resources.spill_load_bytes > 0);
    assert!(resources.stack_bytes >= 4);
    agree(resources, &compiled.cubin, "crowded");
}

/// Local memory appears in PTX when an array is indexed by a run-time value, which never happens,
/// and in the resources when registers run out. Decode, whose speed depends on loads in flight,
/// keeps four heads in registers, and eight almost without spills; prefill may spill a few words.
#[test]
fn next_to_nothing_spills() {
    nvrtc();
    let all = |target| {
        for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
            for head_dim in [64, 128, 256, 576] {
                check(&spec(Role::Prefill, dtype, head_dim), target, 64);
                for (group, most) in [(4, 0), (16, 80)] {
                    let mut spec = spec(Role::Decode, dtype, head_dim);
                    spec.group = group;
                    check(&spec, target, most);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| all(SM_80));
        all(SM_90A);
    });
}

fn check(spec: &KernelSpec, target: Target, most: u32) {
    let kernel = emit(spec, target).expect("compiles");
    let names: Vec<&str> = kernel.files.iter().map(|f| f.0.as_str()).collect();
    assert_eq!(names, ["cu", "ptx", "cubin"]);
    let histogram = ptx::histogram(&kernel.files[1].1);
    let local = histogram.count("ld.local") + histogram.count("st.local");
    assert_eq!(local, 0, "{target} {spec:?}");
    let resources = kernel.resources.expect("a log that is understood");
    let spills = resources.spill_store_bytes;
    assert!(spills <= most, "{target} {spec:?}: {resources:?}");
    let on_matrix_units = spec.dtype != Dtype::F32
        && match spec.role {
            Role::Prefill => spec.head_dim <= 256,
            Role::Decode => target == SM_90A,
        };
    let products = histogram.count("mma.sync") + histogram.count("wgmma.mma_async");
    assert_eq!(products > 0, on_matrix_units, "{target} {spec:?}");
}
