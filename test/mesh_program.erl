%%% The programs of native/mesh/examples as separate OS processes: lines in, Erlang terms out. A
%%% program ends when the port to it closes; each handle is a process that owns the port.
-module(mesh_program).

-export([peer/0, relay/0, attacker/0, start/2, stop/1, kill/1, command/2, port/1, os_pid/1]).
-export([answer/2, await_exit/2, pause/1, resume/1, signal/2]).

-export_type([program/0]).

-opaque program() :: #{owner := pid(), port := inet:port_number(), os_pid := non_neg_integer()}.

-define(START_MS, 10_000).
-define(COMMAND_MS, 60_000).
-define(MAX_LINE, 1_048_576).

peer() ->
    Program = os:getenv("MACULA_PEER"),
    %% The Makefile sets this; its target `peer' builds the programs.
    Program =/= false orelse exit('MACULA_PEER_is_not_set'),
    Program.

relay() -> beside_the_peer("relay").

attacker() -> beside_the_peer("attacker").

%% Where all of them are built.
beside_the_peer(Name) -> filename:join(filename:dirname(peer()), Name).

%% `Args' are those of the program, as strings.
start(Program, Args) ->
    Self = self(),
    {Owner, Monitor} = spawn_monitor(fun() -> own(Self, Program, Args) end),
    receive
        {Owner, ready, Port, OsPid} ->
            demonitor(Monitor, [flush]),
            #{owner => Owner, port => Port, os_pid => OsPid};
        {'DOWN', Monitor, process, Owner, Reason} ->
            error({program_did_not_start, Reason})
    after ?START_MS ->
        error(program_did_not_start)
    end.

%% Ends in order.
stop(#{owner := Owner}) ->
    Monitor = monitor(process, Owner),
    Owner ! stop,
    receive
        {'DOWN', Monitor, process, Owner, _} -> ok
    after ?START_MS ->
        error(program_does_not_end)
    end.

%% Ends as a power cut would.
kill(#{os_pid := OsPid} = Program) ->
    signal("KILL", OsPid),
    stop(Program).

%% The UDP port that it listens at.
port(#{port := Port}) -> Port.

os_pid(#{os_pid := OsPid}) -> OsPid.

%% The program's answer to one command line.
command(#{owner := Owner}, Line) ->
    Monitor = monitor(process, Owner),
    Owner ! {command, self(), Monitor, Line},
    receive
        {Monitor, Answer} ->
            demonitor(Monitor, [flush]),
            Answer;
        {'DOWN', Monitor, process, Owner, Reason} ->
            error({program_is_gone, Reason})
    after ?COMMAND_MS ->
        error({no_answer, Line})
    end.

own(Starter, Program, Args) ->
    Monitor = monitor(process, Starter),
    Options = [{args, Args}, {line, ?MAX_LINE}, binary, exit_status, use_stdio],
    Port = open_port({spawn_executable, Program}, Options),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    {ready, Number} = answer(Port, ?START_MS),
    Starter ! {self(), ready, Number, OsPid},
    serve(Port, OsPid, Monitor).

serve(Port, OsPid, Monitor) ->
    receive
        {command, From, Ref, Line} ->
            true = port_command(Port, [Line, $\n]),
            From ! {Ref, answer(Port, ?COMMAND_MS)},
            serve(Port, OsPid, Monitor);
        stop ->
            finish(Port, OsPid);
        {'DOWN', Monitor, process, _, _} ->
            finish(Port, OsPid);
        {Port, {exit_status, _}} ->
            ok
    end.

%% The program quits by itself when told so, unless a failed test has left it standing still; one
%% that was killed has gone already.
finish(Port, OsPid) ->
    try port_command(Port, "quit\n") of
        true ->
            resume(OsPid),
            await_exit(Port, ?START_MS)
    catch
        error:badarg -> ok
    end.

%% The exit status of a program behind this port, whatever it says before. The caller owns the port.
await_exit(Port, Ms) ->
    receive
        {Port, {exit_status, Status}} -> Status;
        {Port, {data, _}} -> await_exit(Port, Ms)
    after Ms ->
        {os_pid, OsPid} = erlang:port_info(Port, os_pid),
        signal("KILL", OsPid),
        exit(program_does_not_exit)
    end.

%% Has a process of this machine stand still. A thread that is not running when the signal comes
%% stops a little later.
pause(OsPid) when is_integer(OsPid) ->
    pause(integer_to_list(OsPid));
pause(OsPid) ->
    signal("STOP", OsPid),
    mesh_wait:eventually(["T"], fun() -> lists:usort(thread_states(OsPid)) end).

resume(OsPid) -> signal("CONT", OsPid).

%% The third field of /proc/PID/task/TID/stat; the second, the name, is in parentheses.
thread_states(OsPid) ->
    [
        thread_state(Line)
     || File <- filelib:wildcard("/proc/" ++ OsPid ++ "/task/*/stat"),
        %% A thread may have ended meanwhile.
        {ok, Line} <- [file:read_file(File)]
    ].

thread_state(Line) ->
    [_, Fields] = string:split(Line, ") ", trailing),
    binary_to_list(binary:part(Fields, 0, 1)).

%% Sends a signal to a process of this machine.
signal(Name, OsPid) when is_integer(OsPid) ->
    signal(Name, integer_to_list(OsPid));
signal(Name, OsPid) ->
    _ = os:cmd(io_lib:format("kill -~s ~s", [Name, OsPid])),
    ok.

%% The next line of a program behind this port, as the term that it is. The caller owns the port.
answer(Port, Ms) ->
    receive
        {Port, {data, {eol, Line}}} ->
            {ok, Tokens, _} = erl_scan:string(binary_to_list(Line)),
            {ok, Term} = erl_parse:parse_term(Tokens),
            Term;
        {Port, {exit_status, Status}} ->
            exit({program_exited, Status})
    after Ms ->
        exit(program_is_silent)
    end.
