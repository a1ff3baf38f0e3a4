//! The command line: one file per subcommand. Exit codes: 0 done, 1 failed, 2 misused, 3 a required figure was not reached.

mod evaluate;
mod health;
mod key;
mod models;
mod openapi;
mod predict;
mod serve;
mod tune;

use std::env;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use facewise::config::{self, ConfigError, File, Settings};
use facewise::process;

/// Age, gender, smile and emotion from faces.
///
/// Every flag is also an environment variable, FACEWISE_ and its name, and a key of facewise.toml; flags come first, then
/// the environment, then the file.
#[derive(Parser)]
#[command(name = "facewise", version)]
struct Cli {
    /// File with settings [default: facewise.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer over HTTP
    Serve(Box<serve::Args>),
    /// Tell about the faces in pictures
    #[command(mut_arg("log_level", |level| level.default_value("warn")))]
    Predict(Box<predict::Args>),
    /// Score a labelled set
    Evaluate(Box<evaluate::Args>),
    /// Measure with which settings the networks run fastest on this machine, and write them into facewise.toml
    ///
    /// The default model and the detector are run with enough pictures waiting, for a minute or more, on numbers of workers and
    /// of threads inside a run that together fill the CPUs available or half of them. The file that is written is facewise.toml, or
    /// the one of --config; the rest of it stays as it is. What is measured is --workers, --intra-threads, --max-batch and
    /// --max-detector-batch: their values do not count here.
    ///
    /// Without having been tuned, there is one worker with one thread for each CPU available, and a run takes 8 faces or 2 pictures
    /// at most (32 and 8 with a GPU). Do it anew on another machine, with other CPU limits, and with other models.
    #[command(
        mut_arg("log_level", |level| level.default_value("warn")),
        mut_arg("workers", |measured| measured.hide(true)),
        mut_arg("intra_threads", |measured| measured.hide(true)),
        mut_arg("max_batch", |measured| measured.hide(true)),
        mut_arg("max_detector_batch", |measured| measured.hide(true))
    )]
    Tune(Box<tune::Args>),
    /// List the models of the folder, each tried out; fails when one cannot be served
    #[command(mut_arg("log_level", |level| level.default_value("warn")))]
    Models(Box<models::Args>),
    /// Make a key for those who ask the server
    Key(key::Args),
    /// Ask a running server whether it is ready
    Health(health::Args),
    /// Print the description of the HTTP interface
    #[command(hide = true)]
    Openapi,
}

/// Runs the program.
pub(crate) fn main() -> ExitCode {
    let glance = Glance::of_the_arguments();
    let file = match File::read(glance.config.as_deref()) {
        Ok(file) => file,
        Err(ConfigError::Read { source, .. }) if glance.writes && source.kind() == ErrorKind::NotFound => {
            File::default()
        }
        Err(error) => return fail(&error.into(), 2),
    };
    let cli: Cli = match config::parse(env::args_os(), &file) {
        Ok(cli) => cli,
        Err(error) => error.exit(),
    };
    if !matches!(cli.command, Command::Key(_) | Command::Health(_) | Command::Openapi)
        && let Err(error) = process::prepare_to_compute()
    {
        return fail(&anyhow::Error::new(error).context("this program cannot start itself anew"), 1);
    }
    let done = match cli.command {
        Command::Serve(args) => serve::run(Settings { keys: file.keys, ..args.settings }),
        Command::Predict(args) => predict::run(&args),
        Command::Evaluate(args) => evaluate::run(&args),
        Command::Tune(args) => tune::run(&args, cli.config.as_deref()),
        Command::Models(args) => models::run(&args),
        Command::Key(args) => key::run(&args),
        Command::Health(args) => health::run(&args),
        Command::Openapi => openapi::run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<evaluate::Unmet>() => fail(&error, 3),
        Err(error) => fail(&error, 1),
    }
}

/// One sentence on standard error: the error and its causes, as far as the error does not quote them itself.
fn fail(error: &anyhow::Error, code: u8) -> ExitCode {
    let mut sentence = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !sentence.contains(&cause) {
            sentence = format!("{sentence}: {cause}");
        }
    }
    eprintln!("facewise: {sentence}");
    ExitCode::from(code)
}

/// The configuration file must be known before the flags can be parsed over it: a first, lenient look.
#[derive(Default)]
struct Glance {
    config: Option<PathBuf>,
    /// Whether the file is written by the command, and so need not be there.
    writes: bool,
}

impl Glance {
    fn of_the_arguments() -> Self {
        let command = config::layered(Cli::command(), &File::default()).ignore_errors(true);
        let Ok(matches) = command.try_get_matches_from(env::args_os()) else { return Self::default() };
        let config = matches
            .subcommand()
            .and_then(|(_, matches)| matches.get_one::<PathBuf>("config"))
            .or_else(|| matches.get_one::<PathBuf>("config"))
            .cloned();
        Self { config, writes: matches.subcommand_name() == Some("tune") }
    }
}
