//! The messages of the protocol (the NBD project's doc/proto.md): what the bytes mean, and no I/O. All
//! numbers are big-endian.

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// What a server begins with: "NBDMAGIC".
pub const GREETING_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// What begins an option, and follows the greeting of a newstyle server: "IHAVEOPT".
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// What begins a reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// What begins a request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// What begins a simple reply.
pub const SIMPLE_MAGIC: u32 = 0x6744_6698;
/// What begins a chunk of a structured reply.
pub const CHUNK_MAGIC: u32 = 0x668e_33ef;

/// Flags of the greeting, and of the answer to it.
pub mod greeting {
    /// Options can be negotiated.
    pub const FIXED_NEWSTYLE: u16 = 1;
    /// No zeros follow the answer to the oldest option.
    pub const NO_ZEROES: u16 = 2;
}

/// Options of the handshake.
pub mod option {
    /// Begins transmission, without a way to say no but to hang up.
    pub const EXPORT_NAME: u32 = 1;
    /// Begins transmission.
    pub const GO: u32 = 7;
    /// Replies may come in chunks.
    pub const STRUCTURED_REPLY: u32 = 8;
    /// Which metadata contexts block status is asked of.
    pub const SET_META_CONTEXT: u32 = 10;
}

/// Kinds of replies to an option.
pub mod reply {
    /// Done.
    pub const ACK: u32 = 1;
    /// Something of an export.
    pub const INFO: u32 = 3;
    /// A metadata context that was selected.
    pub const META_CONTEXT: u32 = 4;
    /// Set in each error.
    pub const ERROR: u32 = 1 << 31;
    /// The server does not have this option.
    pub const UNSUPPORTED: u32 = ERROR | 1;
    /// It is not allowed.
    pub const POLICY: u32 = ERROR | 2;
    /// Only with TLS.
    pub const TLS_REQUIRED: u32 = ERROR | 5;
    /// There is no such export.
    pub const UNKNOWN: u32 = ERROR | 6;
    /// The server ends.
    pub const SHUTDOWN: u32 = ERROR | 7;
}

/// What is told of an export.
pub mod info {
    /// Length and flags.
    pub const EXPORT: u16 = 0;
    /// Constraints on requests.
    pub const BLOCK_SIZE: u16 = 3;
}

/// Flags of an export.
pub mod export {
    /// Nothing can be written.
    pub const READ_ONLY: u16 = 1 << 1;
    /// It can be flushed.
    pub const CAN_FLUSH: u16 = 1 << 2;
    /// Zeros can be written without sending them.
    pub const CAN_ZERO: u16 = 1 << 6;
    /// Several connections see the same.
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
}

/// Kinds of chunks.
pub mod chunk {
    /// Set in the last chunk of a reply.
    pub const DONE: u16 = 1;
    /// Nothing.
    pub const NONE: u16 = 0;
    /// Bytes.
    pub const DATA: u16 = 1;
    /// Zeros.
    pub const HOLE: u16 = 2;
    /// Extents of a metadata context.
    pub const STATUS: u16 = 5;
    /// Set in each error.
    pub const ERROR: u16 = 1 << 15;
}

/// In `base:allocation`: the extent reads as zeros.
pub const STATE_ZERO: u32 = 1 << 1;
/// In a bitmap of QEMU: the extent was written to.
pub const STATE_DIRTY: u32 = 1;

/// The longest reply to an option, in bytes: no string is longer than 4096.
pub const MAX_OPTION_REPLY: u32 = 64 << 10;
/// The most extents of one context in a reply; those of QEMU have 2^17, of nbdkit 2^20.
pub const MAX_EXTENTS: u32 = 1 << 20;
/// The longest message that comes with an error, in bytes.
pub const MAX_ERROR_BYTES: u32 = 8192;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Command {
    /// Bytes.
    Read = 0,
    /// To write the bytes that follow.
    Write = 1,
    /// Nothing more; the server hangs up.
    Disconnect = 2,
    /// To make durable what was written.
    Flush = 3,
    /// To write zeros, or to punch a hole.
    Zero = 6,
    /// Extents.
    BlockStatus = 7,
}

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),+ $(,)? })+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name { $(pub $field: $type),+ }
    )+};
}

wire! {
    /// What a server begins with.
    Greeting { magic: U64, style: U64, flags: U16 }
    /// The head of an option.
    OptionHead { magic: U64, option: U32, bytes: U32 }
    /// The head of a reply to an option.
    OptionReply { magic: U64, option: U32, kind: U32, bytes: U32 }
    /// Length and flags of an export.
    ExportInfo { bytes: U64, flags: U16 }
    /// Constraints on requests.
    BlockSizes { minimum: U32, preferred: U32, maximum: U32 }
    /// A request.
    Request { magic: U32, flags: U16, command: U16, cookie: U64, offset: U64, bytes: U32 }
    /// A simple reply, after its magic number.
    SimpleReply { error: U32, cookie: U64 }
    /// A chunk of a structured reply, after its magic number.
    Chunk { flags: U16, kind: U16, cookie: U64, bytes: U32 }
    /// What a hole chunk has.
    Hole { offset: U64, bytes: U32 }
    /// An extent of a metadata context.
    StatusExtent { bytes: U32, flags: U32 }
}

impl Request {
    /// A request without flags.
    pub fn new(command: Command, cookie: u64, offset: u64, bytes: u32) -> Self {
        Self {
            magic: REQUEST_MAGIC.into(),
            flags: 0.into(),
            command: (command as u16).into(),
            cookie: cookie.into(),
            offset: offset.into(),
            bytes: bytes.into(),
        }
    }
}

/// An option with its data.
pub fn encode_option(option: u32, data: &[u8]) -> Vec<u8> {
    let (magic, bytes) = (OPTION_MAGIC.into(), (data.len() as u32).into());
    let mut out = OptionHead { magic, option: option.into(), bytes }.as_bytes().to_vec();
    out.extend_from_slice(data);
    out
}

/// The data of the option GO: a name, and what is to be told of the export.
pub fn encode_go(name: &str, infos: &[u16]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend_from_slice(U16::new(infos.len() as u16).as_bytes());
    infos.iter().for_each(|info| data.extend_from_slice(U16::new(*info).as_bytes()));
    data
}

/// The data of the option SET_META_CONTEXT: the name of the export, and those of contexts.
pub fn encode_contexts(name: &str, contexts: &[&str]) -> Vec<u8> {
    let mut data = counted(name);
    data.extend_from_slice(U32::new(contexts.len() as u32).as_bytes());
    contexts.iter().for_each(|context| data.extend(counted(context)));
    data
}

fn counted(text: &str) -> Vec<u8> {
    let mut data = U32::new(text.len() as u32).as_bytes().to_vec();
    data.extend_from_slice(text.as_bytes());
    data
}

/// Something that is told of an export.
#[derive(Debug, Clone, Copy)]
pub enum Info {
    /// Length and flags.
    Export(ExportInfo),
    /// Constraints on requests.
    BlockSizes(BlockSizes),
    /// What we do not need.
    Other,
}

impl Info {
    /// Decodes a reply of kind INFO; none if it has another length.
    pub fn decode(data: &[u8]) -> Option<Self> {
        let (kind, rest) = U16::read_from_prefix(data).ok()?;
        Some(match kind.get() {
            info::EXPORT => Self::Export(ExportInfo::read_from_bytes(rest).ok()?),
            info::BLOCK_SIZE => Self::BlockSizes(BlockSizes::read_from_bytes(rest).ok()?),
            _ => Self::Other,
        })
    }
}

/// Decodes a reply of kind META_CONTEXT: the id and the name of the context.
pub fn decode_context(data: &[u8]) -> Option<(u32, &[u8])> {
    let (id, name) = U32::read_from_prefix(data).ok()?;
    Some((id.get(), name))
}

/// The number of an error that a server reports, as this system has it. Those of the protocol are Linux's;
/// others count as EINVAL.
pub fn errno(error: u32) -> i32 {
    use libc::{EINVAL, EIO, ENOMEM, ENOSPC, EOPNOTSUPP, EOVERFLOW, EPERM, ESHUTDOWN};
    let known = [EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, EOPNOTSUPP, ESHUTDOWN];
    known.into_iter().find(|known| *known as u32 == error).unwrap_or(EINVAL)
}

/// The number of the error in an error chunk.
pub fn decode_error(data: &[u8]) -> Option<i32> {
    U32::read_from_prefix(data).ok().map(|(error, _)| errno(error.get()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_bytes_of_the_protocol() {
        let request = Request::new(Command::BlockStatus, 0x0102_0304_0506_0708, 4096, 512);
        let bytes = [
            0x25, 0x60, 0x95, 0x13, 0, 0, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0x10, 0,
            0, 0, 2, 0,
        ];
        assert_eq!(request.as_bytes(), bytes);
        let go = encode_option(option::GO, &encode_go("vm", &[info::BLOCK_SIZE]));
        assert_eq!(go, b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x02vm\0\x01\0\x03");
        let contexts = encode_contexts("", &["base:allocation", "x"]);
        assert_eq!(contexts, b"\0\0\0\0\0\0\0\x02\0\0\0\x0fbase:allocation\0\0\0\x01x");
        assert_eq!(
            GREETING_MAGIC.to_string(),
            U64::read_from_bytes(b"NBDMAGIC").unwrap().to_string()
        );
        let head =
            Chunk::read_from_bytes(&[0, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 12]).unwrap();
        assert_eq!((head.flags.get(), head.kind.get()), (chunk::DONE, chunk::STATUS));
        assert_eq!((head.cookie.get(), head.bytes.get()), (9, 12));
    }

    #[test]
    fn what_is_told_of_an_export_has_one_length() {
        let export = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 3];
        let Some(Info::Export(info)) = Info::decode(&export) else { panic!("no export") };
        assert_eq!((info.bytes.get(), info.flags.get()), (65_536, 0x103));
        for cut in 0..export.len() {
            assert!(Info::decode(&export[..cut]).is_none(), "{cut}");
        }
        let sizes = [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0];
        let Some(Info::BlockSizes(sizes)) = Info::decode(&sizes) else { panic!("no sizes") };
        assert_eq!((sizes.minimum.get(), sizes.maximum.get()), (512, 32 << 20));
        assert!(matches!(Info::decode(&[0, 9, 1, 2, 3]), Some(Info::Other)));
        assert_eq!(
            decode_context(b"\0\0\0\x07base:allocation"),
            Some((7, &b"base:allocation"[..]))
        );
        assert!(decode_context(b"\0\0\0").is_none());
    }

    #[test]
    fn errors_that_the_protocol_does_not_know_are_no_errors_of_a_medium() {
        assert_eq!(errno(5), libc::EIO);
        for other in [0, 61, 74, 84, 117, u32::MAX] {
            assert_eq!(errno(other), libc::EINVAL, "{other}");
        }
        assert_eq!(decode_error(b"\0\0\0\x05\0\0"), Some(libc::EIO));
        assert_eq!(decode_error(b"\0\0\0"), None);
    }
}
