//! What can be typed after `imgsnap bench`, and the request that it becomes.

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{Args as ClapArgs, ValueEnum, ValueHint};
use imgsnap::base::units::{BlockSize, parse_bytes};
use imgsnap::bench::{Pattern, Request, Setting, Sweep};
use imgsnap::codec::Compression;
use std::path::PathBuf;

const MIN_IMAGE_BYTES: u64 = 16 << 20;
/// The blocks in which an image is made and changed.
const PAGE_BYTES: u64 = 4096;

#[derive(ClapArgs)]
pub struct Bench {
    /// Size of the image to create, at least 16M
    #[arg(long, value_name = "SIZE", default_value = "4G", value_parser = parse_size)]
    size: u64,
    /// Block size, a power of two from 4K to 1M [default: 4K]
    #[arg(long, value_name = "SIZE")]
    block_size: Option<BlockSize>,
    /// Share of the image that changes between two snapshots [default: 1%]
    #[arg(long, value_name = "PERCENT", value_parser = parse_change)]
    change: Option<f64>,
    /// Pattern of changed blocks
    #[arg(long, value_enum, default_value = "random")]
    pattern: Changes,
    /// Approximate reduction of the created image by LZ4
    #[arg(long, value_name = "PERCENT", default_value = "50%", value_parser = parse_share)]
    compressible: f64,
    /// Compression: lz4, zstd[:LEVEL] or none
    #[arg(long, default_value = "lz4")]
    compression: Compression,
    /// Folder in which to create the scratch folder [default: the folder for temporary files]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    dir: Option<PathBuf>,
    /// Use a copy of this image instead
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath,
          conflicts_with_all = ["size", "compressible"])]
    image: Option<PathBuf>,
    /// Number of runs of each operation and of its ceiling
    #[arg(long, value_name = "N", default_value = "3", value_parser = parse_runs)]
    runs: usize,
    /// Also measure with a cold page cache, reading from the device
    #[arg(long)]
    cold: bool,
    /// Repeat the benchmark, varying this setting
    #[arg(long, value_enum, value_name = "WHAT")]
    sweep: Option<Varied>,
    /// Number of deltas after the base, including the measured snapshot [default: 1]
    #[arg(long, value_name = "N", value_parser = parse_chain)]
    chain: Option<usize>,
    /// Also write the result to a Markdown file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub export_markdown: Option<PathBuf>,
    /// Also plot the result to an SVG file
    #[arg(long, value_name = "FILE.svg", value_hint = ValueHint::FilePath,
          value_parser = PathBufValueParser::new().try_map(svg_name))]
    pub plot: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Changes {
    /// Single blocks at random positions
    Random,
    /// Runs of 512 KiB at random positions
    Clustered,
    /// Typical of a virtual machine: rewritten files, a database, a log, freed blocks
    Vm,
}

#[derive(Clone, Copy, ValueEnum)]
enum Varied {
    /// 4K, 16K, 64K, 256K, 1M
    BlockSize,
    /// 0.1%, 1%, 10% and 100%
    Change,
    /// 1, 2, 4 and so on, up to --threads
    Threads,
    /// Chains of 1, 10, 100 and 1000 deltas
    Chain,
}

impl Bench {
    /// What clap cannot judge: a sweep takes values of its own for what it varies.
    pub fn check(&self) -> Result<(), String> {
        let given = match self.sweep {
            Some(Varied::BlockSize) => self.block_size.is_some().then_some("--block-size"),
            Some(Varied::Change) => self.change.is_some().then_some("--change"),
            Some(Varied::Chain) => self.chain.is_some().then_some("--chain"),
            Some(Varied::Threads) | None => None,
        };
        let refuse = |option| format!("--sweep already varies {option}; use only one of them");
        given.map_or(Ok(()), |option| Err(refuse(option)))
    }

    pub fn request(&self, threads: usize) -> Request {
        Request {
            image: self.image.clone(),
            image_bytes: self.size,
            setting: Setting {
                block_size: self.block_size.unwrap_or(BlockSize::DEFAULT),
                change: self.change.unwrap_or(0.01),
                threads,
                chain: self.chain.unwrap_or(1),
            },
            pattern: match self.pattern {
                Changes::Random => Pattern::Random,
                Changes::Clustered => Pattern::Clustered,
                Changes::Vm => Pattern::Vm,
            },
            compressible: self.compressible,
            compression: self.compression,
            folder: self.dir.clone().unwrap_or_else(std::env::temp_dir),
            runs: self.runs,
            cold: self.cold,
            sweep: self.sweep.map(|varied| match varied {
                Varied::BlockSize => Sweep::BlockSize,
                Varied::Change => Sweep::Change,
                Varied::Threads => Sweep::Threads,
                Varied::Chain => Sweep::Chain,
            }),
        }
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text).map_err(|e| e.to_string())? {
        ..MIN_IMAGE_BYTES => Err("must be at least 16M".into()),
        bytes if !bytes.is_multiple_of(PAGE_BYTES) => Err("must be a multiple of 4K".into()),
        bytes => Ok(bytes),
    }
}

/// `1%`, `0.1 %`; as a share of 1. A number without the sign could be meant either way.
fn parse_share(text: &str) -> Result<f64, String> {
    let number = text.trim().strip_suffix('%').map(str::trim_end);
    let number =
        number.ok_or_else(|| format!("\"{text}\" has no percent sign; write it like 1%"))?;
    let is_plain = number.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let percent = number.parse::<f64>().ok().filter(|_| is_plain);
    let percent =
        percent.ok_or_else(|| format!("invalid percentage \"{text}\"; write it like 1%"))?;
    if percent > 100.0 {
        Err("invalid percentage: expected 0 to 100".into())
    } else {
        Ok(percent / 100.0)
    }
}

fn parse_change(text: &str) -> Result<f64, String> {
    match parse_share(text)? {
        share if share > 0.0 => Ok(share),
        _ => Err("must be more than 0%".into()),
    }
}

fn parse_number(text: &str, most: usize) -> Result<usize, String> {
    let number = text.parse().ok().filter(|n| (1..=most).contains(n));
    number.ok_or_else(|| format!("invalid number \"{text}\": expected 1 to {most}"))
}

fn parse_runs(text: &str) -> Result<usize, String> {
    parse_number(text, 100)
}

fn parse_chain(text: &str) -> Result<usize, String> {
    parse_number(text, 1000)
}

fn svg_name(path: PathBuf) -> Result<PathBuf, String> {
    let is_svg = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("svg"));
    if is_svg {
        Ok(path)
    } else {
        Err("only SVG is supported: the file name must end with .svg".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        bench: Bench,
    }

    fn bench(args: &[&str]) -> Bench {
        Line::try_parse_from([&["bench"], args].concat()).unwrap_or_else(|e| panic!("{e}")).bench
    }

    #[test]
    fn nothing_typed_is_4_gib_of_which_1_percent_changes() {
        let request = bench(&[]).request(2);
        assert_eq!((request.image_bytes, request.runs, request.cold), (4 << 30, 3, false));
        assert_eq!((request.image, request.sweep), (None, None));
        assert_eq!((request.pattern, request.compressible), (Pattern::Random, 0.5));
        assert_eq!(request.compression, Compression::Lz4);
        assert_eq!(request.folder, std::env::temp_dir());
        let usual = Setting { block_size: BlockSize::DEFAULT, change: 0.01, threads: 2, chain: 1 };
        assert_eq!(request.setting, usual);
    }

    #[test]
    fn what_is_typed_is_what_is_asked_for() {
        let request = bench(&[
            "--size=64M",
            "--block-size=64K",
            "--change=0.1 %",
            "--pattern=vm",
            "--compressible=0%",
            "--compression=zstd:3",
            "--dir=/d",
            "--runs=100",
            "--cold",
            "--sweep=chain",
        ])
        .request(8);
        assert_eq!((request.image_bytes, request.runs, request.cold), (64 << 20, 100, true));
        assert_eq!((request.pattern, request.sweep), (Pattern::Vm, Some(Sweep::Chain)));
        assert_eq!((request.compressible, request.compression), (0.0, Compression::Zstd(3)));
        assert_eq!(request.folder, PathBuf::from("/d"));
        let block_size = BlockSize::new(65536).unwrap();
        assert_eq!(request.setting, Setting { block_size, change: 0.001, threads: 8, chain: 1 });
        let request = bench(&["--image=vm.img", "--pattern=clustered", "--chain=1000"]).request(1);
        assert_eq!(request.image, Some("vm.img".into()));
        assert_eq!((request.pattern, request.setting.chain), (Pattern::Clustered, 1000));
    }

    #[test]
    fn percentages_have_their_sign_and_stay_within_100() {
        for (text, share) in
            [("1%", 0.01), ("0.1%", 0.001), (" 1 % ", 0.01), ("100%", 1.0), ("0%", 0.0)]
        {
            assert_eq!(parse_share(text), Ok(share), "{text}");
        }
        for text in ["0.01", "1", "%", "1%%", "-1%", "1e1%", "nan%", "inf%", "100.1%", "1.1.1%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
        assert_eq!(parse_change("100%"), Ok(1.0));
        assert!(parse_change("0%").is_err() && parse_change("0.0 %").is_err());
    }

    #[test]
    fn a_sweep_takes_no_value_for_what_it_varies() {
        for (sweep, option) in
            [("block-size", "--block-size=4K"), ("change", "--change=1%"), ("chain", "--chain=1")]
        {
            let refused = bench(&["--sweep", sweep, option]).check().unwrap_err();
            let name = option.split('=').next().unwrap();
            assert!(refused.contains(name), "{refused}");
            assert_eq!(bench(&["--sweep", "threads", option]).check(), Ok(()));
            assert_eq!(bench(&[option]).check(), Ok(()));
        }
    }
}
