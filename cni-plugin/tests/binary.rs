//! The built file: it runs on whatever a node has.

#![expect(clippy::unwrap_used, reason = "helpers of tests: what fails here fails the test")]

use std::fs;

/// ELF's kinds of program header that matter here, and the kind of dynamic entry (elf(5)).
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const DT_NULL: u64 = 0;
const DT_NEEDED: u64 = 1;

/// A little-endian number at `at`.
fn number<const LEN: usize>(file: &[u8], at: usize) -> u64 {
    let mut bytes = [0; 8];
    bytes[..LEN].copy_from_slice(&file[at..at + LEN]);
    u64::from_le_bytes(bytes)
}

fn place<const LEN: usize>(file: &[u8], at: usize) -> usize {
    number::<LEN>(file, at).try_into().unwrap()
}

#[test]
fn it_needs_no_loader_and_no_library_of_the_node() {
    let file = fs::read(env!("CARGO_BIN_EXE_adit-cni")).unwrap();
    assert_eq!(&file[..6], b"\x7fELF\x02\x01", "a 64-bit little-endian file");
    let (headers, len, count) = (place::<8>(&file, 32), place::<2>(&file, 54), place::<2>(&file, 56));
    assert!(count > 0);
    for header in (0..count).map(|nth| headers + nth * len) {
        let kind = u32::try_from(number::<4>(&file, header)).unwrap();
        assert_ne!(kind, PT_INTERP, "it names a loader");
        if kind == PT_DYNAMIC {
            let (at, size) = (place::<8>(&file, header + 8), place::<8>(&file, header + 32));
            let tags = file[at..at + size].chunks_exact(16).map(|entry| number::<8>(entry, 0));
            assert!(tags.take_while(|tag| *tag != DT_NULL).all(|tag| tag != DT_NEEDED), "it needs a library");
        }
    }
}
