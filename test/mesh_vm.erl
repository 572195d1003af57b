%%% Another VM, which a test may kill things in and count from outside, and what runs there: a pool
%%% under a supervisor, and callers that never rest.
-module(mesh_vm).

-behaviour(supervisor).

-export([with/1, with/2, start/0, pause/1, resume/1, kill/1, call/3, call/4]).
-export([os_pid/1, limit_descriptors/2, footprint/1, grown/2, memory_kib/1, exit_status/2]).
-export([start_pool/1, stop_pool/0, kill_server/0, start_load/2, kill_caller/0, stop_load/0]).
-export([churn/0, collect_garbage/0, server_function/0, wait_for_word/1, init/1]).

-define(POOL, macula_gateway_mesh).
-define(SUPERVISOR, mesh_vm_supervisor).
-define(PARENT, mesh_vm_parent).
-define(CALL_MS, 60_000).
%% What exit_status/2 waits for: the VM's start, its load, its end.
-define(STEP_MS, 60_000).

%%% For the test

%% Runs `Test(Vm)' with another VM, which is not distributed: the two talk by its standard input.
with(Test) -> with(#{}, Test).

%% `More' are options of `peer'.
with(More, Test) ->
    Vm = start(More),
    try
        Test(Vm)
    after
        peer:stop(Vm)
    end.

%% It ends with the calling process, too.
start() -> start(#{}).

start(More) ->
    mesh_ct:forget_configuration(),
    Options = #{connection => standard_io, args => code_paths(), wait_boot => ?CALL_MS},
    {ok, Vm, _Node} = peer:start_link(maps:merge(Options, More)),
    _ = put({?MODULE, Vm}, call(Vm, os, getpid, [])),
    %% It may have no descriptor left when this is called for the first time.
    {module, mesh_wait} = call(Vm, code, ensure_loaded, [mesh_wait]),
    Vm.

%% It stands still, and can only be killed, until it goes on.
pause(Vm) ->
    mesh_program:pause(os_pid(Vm)).

resume(Vm) ->
    mesh_program:resume(os_pid(Vm)).

%% Ends it as a power cut would.
kill(Vm) ->
    unlink(Vm),
    Monitor = monitor(process, Vm),
    ok = mesh_program:signal("KILL", os_pid(Vm)),
    receive
        {'DOWN', Monitor, process, Vm, _} -> ok
    end.

call(Vm, Module, Function, Arguments) ->
    peer:call(Vm, Module, Function, Arguments, ?CALL_MS).

call(Vm, Function, Arguments) ->
    Module =
        case erlang:function_exported(?MODULE, Function, length(Arguments)) of
            true -> ?MODULE;
            false -> ?POOL
        end,
    call(Vm, Module, Function, Arguments).

%% Its process; who has started it knows that also while it stands still.
os_pid(Vm) ->
    case get({?MODULE, Vm}) of
        undefined -> call(Vm, os, getpid, []);
        OsPid -> OsPid
    end.

%% How many file descriptors it may have; those that are open stay so.
limit_descriptors(Vm, Count) ->
    Command = io_lib:format("prlimit --pid ~s --nofile=~b:", [os_pid(Vm), Count]),
    "" = os:cmd(lists:flatten(Command)),
    ok.

%% How much memory is resident, once the VM has given back what it can.
memory_kib(Vm) ->
    ok = peer:call(Vm, ?MODULE, collect_garbage, [], ?CALL_MS),
    {ok, Status} = file:read_file("/proc/" ++ os_pid(Vm) ++ "/status"),
    {match, [Kib]} = re:run(Status, "VmRSS:\\s+(\\d+)", [{capture, all_but_first, binary}]),
    binary_to_integer(Kib).

%% How many file descriptors and threads the other VM has, as the kernel counts them.
footprint(Vm) ->
    Process = "/proc/" ++ os_pid(Vm),
    {ok, Descriptors} = file:list_dir(Process ++ "/fd"),
    {ok, Threads} = file:list_dir(Process ++ "/task"),
    #{fds => length(Descriptors), threads => length(Threads)}.

%% What of these figures is more than it was. Less is right: the runtime ends a thread for look-ups
%% that has had none for ten seconds.
grown(Figures, Before) ->
    maps:filter(fun(Key, Count) -> Count > maps:get(Key, Before) end, Figures).

%% The exit status of a VM that gets `Word' while it sends to these ports all it can.
exit_status(Word, Ports) ->
    Erl = filename:join([code:root_dir(), "bin", "erl"]),
    Numbers = [integer_to_list(Port) || Port <- Ports],
    Run = ["-noshell", "-run", ?MODULE_STRING, "wait_for_word" | Numbers],
    Options = [{args, code_paths() ++ Run}, {line, 1_000}, exit_status, use_stdio],
    Port = open_port({spawn_executable, Erl}, Options),
    await_line(Port, "loaded"),
    true = port_command(Port, [Word, $\n]),
    mesh_program:await_exit(Port, ?STEP_MS).

%%% In the other VM

start_pool(Options) ->
    Caller = self(),
    %% The supervisor's parent has to outlive this call; when it ends, so does the supervisor.
    {Parent, Monitor} = spawn_monitor(fun() ->
        true = register(?PARENT, self()),
        {ok, _} = supervisor:start_link({local, ?SUPERVISOR}, ?MODULE, Options),
        Caller ! {self(), started},
        receive
            never -> ok
        end
    end),
    receive
        {Parent, started} ->
            _ = demonitor(Monitor, [flush]),
            ok;
        {'DOWN', Monitor, process, Parent, Reason} -> error(Reason)
    end.

stop_pool() ->
    Monitor = monitor(process, ?SUPERVISOR),
    true = exit(whereis(?PARENT), shutdown),
    receive
        {'DOWN', Monitor, process, _, _} -> ok
    end.

%% What the server is about.
server_function() ->
    {current_function, {_Module, Function, _Arity}} =
        process_info(whereis(?POOL), current_function),
    Function.

%% Returns once another server has taken the place of the killed one.
kill_server() ->
    Server = whereis(?POOL),
    exit(Server, kill),
    mesh_wait:eventually(true, fun() ->
        not lists:member(whereis(?POOL), [undefined, Server])
    end).

%% Callers that send to these nodes, `[{NodeId, Address}]', by every way there is.
start_load(Targets, Count) ->
    Callers = [spawn(fun() -> send_forever(Targets) end) || _ <- lists:seq(1, Count)],
    application:set_env(?MODULE, callers, Callers).

kill_caller() ->
    {ok, [Caller | Rest]} = application:get_env(?MODULE, callers),
    exit(Caller, kill),
    application:set_env(?MODULE, callers, Rest).

stop_load() ->
    {ok, Callers} = application:get_env(?MODULE, callers),
    Monitors = [monitor(process, Caller) || Caller <- Callers],
    [exit(Caller, kill) || Caller <- Callers],
    lists:foreach(
        fun(Monitor) ->
            receive
                {'DOWN', Monitor, process, _, _} -> ok
            end
        end,
        Monitors
    ).

%% Twice: what the first round frees may have been held by another process.
collect_garbage() ->
    [_ = garbage_collect(Pid) || _ <- [first, second], Pid <- processes()],
    ok.

%% Fills what the VM has just freed with something else, so that whoever still uses it is noticed.
churn() ->
    Sizes = [8 * N || N <- lists:seq(1, 64)],
    Blocks = [binary:copy(<<255>>, Size) || Size <- Sizes, _ <- lists:seq(1, 200)],
    Tables = [ets:new(?MODULE, []) || _ <- lists:seq(1, 200)],
    _ = [ets:delete(Table) || Table <- Tables],
    length(Blocks).

%% The life of the VM of exit_status/2. The boot sequence must not wait for it. One of the nodes it
%% sends to is its own: so the library's threads deliver to processes, too, and answer those that
%% wait in `send/5'.
wait_for_word(Ports) ->
    _ = spawn(fun() ->
        Files = quic_certs:self_signed("node." ++ os:getpid()),
        Own = mesh_callers:listen(0, Files, "/dev/null", #{}),
        Numbers = [Own | [list_to_integer(Port) || Port <- Ports]],
        Targets = [{<<N:256>>, {{127, 0, 0, 1}, N}} || N <- Numbers],
        ok = start_pool(#{queue_max_messages => 1_000}),
        ok = start_load(Targets, 8),
        ok = mesh_callers:start(Targets, 8, 1, #{keeps => false, confirm_ms => ?STEP_MS}),
        ok = mesh_wait:eventually(true, fun() -> mesh_ct:stat(messages_delivered) > 1_000 end),
        true = mesh_callers:connections() > 0,
        io:put_chars("loaded\n"),
        end_by(string:trim(io:get_line("")))
    end).

init(Options) ->
    Flags = #{intensity => 1_000, period => 1},
    {ok, {Flags, [macula_gateway_mesh:child_spec(Options)]}}.

%%% Internal

code_paths() ->
    Folders = [filename:dirname(code:which(Module)) || Module <- [?POOL, ?MODULE]],
    lists:append([["-pa", Folder] || Folder <- Folders]).

end_by("halt") -> erlang:halt(7);
end_by("stop") -> init:stop().

send_forever(Targets) ->
    {NodeId, Address} = lists:nth(rand:uniform(length(Targets)), Targets),
    ok = ?POOL:send_async(?POOL, NodeId, Address, <<"by the pool">>),
    try ?POOL:get_or_create_connection(?POOL, NodeId, Address) of
        {ok, Stream} -> use(Stream, NodeId);
        {error, _} -> ok
    catch
        %% The server is being restarted.
        exit:_ -> ok
    end,
    send_forever(Targets).

use(Stream, NodeId) ->
    _ = macula_quic:send(Stream, <<"by the stream">>),
    case ?POOL:get_connection_info(?POOL, NodeId) of
        {ok, #{connection := Connection}} -> use_connection(Connection);
        not_found -> ok
    end.

use_connection(Connection) ->
    case macula_quic:open_stream(Connection) of
        {ok, Stream} ->
            _ = macula_quic:send(Stream, <<"by a stream of its own">>),
            macula_quic:close(Stream);
        {error, _} ->
            ok
    end.

await_line(Port, Line) ->
    receive
        {Port, {data, {eol, Line}}} -> ok;
        {Port, {data, _}} -> await_line(Port, Line);
        {Port, {exit_status, Status}} -> error({exited_early, Status})
    after ?STEP_MS -> error({never_said, Line})
    end.
