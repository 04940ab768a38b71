//! The memory that stays allocated while tokens are generated. It is counted by a global allocator,
//! so this test is a program of its own.

use burn::tensor::{Distribution, Tensor};
use burn_flex::Flex;
use butterfly::{Call, Plan, Sparsity, attention};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicIsize, Ordering};

/// The system's allocator, which also counts the bytes that are allocated.
struct Counting;

static BYTES: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is passed on to the system allocator with the same arguments.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Without a capacity each token needs new tables, one for each of the two layers. Only a few of
/// the latest may be kept: of 10,000 tokens, the last 9,000 add less than 4 bytes each.
#[test]
fn memory_of_generated_tokens_stays_flat() {
    const TOKENS: usize = 10_000;
    let device = Default::default();
    let random = |shape| Tensor::<Flex, 4>::random(shape, Distribution::Default, &device);
    let (q, k, v) = (
        random([1, 1, 1, 8]),
        random([1, 1, TOKENS, 8]),
        random([1, 1, TOKENS, 8]),
    );
    for text in [
        "block 32 causal & (local(1) | partner(causal_shift) | sink(1))",
        "block 32 causal & (local(0) | table([[0], [0], [1], [0], [2]]) | window(40))",
    ] {
        let plan = Plan::new(Sparsity::parse("test", text).expect("a pattern")).expect("a plan");
        let mut before = 0;
        for tokens in 1..=TOKENS {
            for index in 0..2 {
                let call = Call {
                    index,
                    kv_len: Some(tokens),
                    ..Call::default()
                };
                let o = attention(q.clone(), k.clone(), v.clone(), &plan, &call);
                assert_eq!(o.expect("attention").dims(), [1, 1, 1, 8]);
            }
            if tokens == TOKENS / 10 {
                before = BYTES.load(Ordering::Relaxed);
            }
        }
        let grown = BYTES.load(Ordering::Relaxed) - before;
        println!("{text}: {grown} bytes more");
        assert!(grown < 36_000, "{text}: {grown} bytes more");
    }
}
