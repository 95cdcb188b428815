//! The command line: arguments in, a call into the library, results on stdout, everything else on
//! stderr.

mod cli;

fn main() -> std::process::ExitCode {
    imgsnap::share_heaps();
    cli::run()
}
