%%% @private
%%% What the platform's configuration says of certificates and of whom to trust, where the caller
%%% does not say it: the environment, and the application environment of `macula'.
-module(macula_gateway_mesh_tls).

-export([pool/1, dialling/1]).

-include_lib("kernel/include/logger.hrl").

-define(DEFAULT_CERT_FILE, "/var/lib/macula/cert.pem").
-define(DEFAULT_KEY_FILE, "/var/lib/macula/key.pem").

%% @doc The options of a pool with what the platform says put in: `certificate', `verify',
%% `cacertfile' and `verify_hostname'.
-spec pool(map()) -> {ok, map()} | {error, {bad_option, atom(), term()}}.
pool(Given) when is_map(Given) ->
    Options = maps:filter(fun is_said/2, Given),
    Files = maps:with([cert_file, key_file, cacertfile], Options),
    case [Option || {_, Path} = Option <- maps:to_list(Files), not is_path(Path)] of
        [] ->
            Trust = maps:from_list(trust(maps:is_key(verify, Options))),
            Ours = maps:merge(Trust, maps:map(fun in_bytes/2, Options)),
            {ok, Ours#{certificate => certificate(Options)}};
        [{Key, Value} | _] ->
            {error, {bad_option, Key, Value}}
    end.

%% @doc The options of a connection with what the platform says put in. What is no list is left
%% for the native side to refuse.
-spec dialling(term()) -> term().
dialling(Given) when length(Given) >= 0 ->
    Options = [Option || Option <- Given, not is_platform_check(Option)],
    case trust(lists:keymember(verify, 1, Options)) of
        [] ->
            Options;
        Trust ->
            {VerifyHostname, Others} = proplists:split(Trust, [verify_hostname]),
            unless_given(Others ++ name_check(VerifyHostname), Options)
    end;
dialling(Improper) ->
    Improper.

%% The platform's own check of the server's name: it asks for no more than we do.
-spec is_platform_check(term()) -> boolean().
is_platform_check({verify_fun, {Check, _State}}) when is_function(Check) ->
    erlang:fun_info(Check, module) =:= {module, macula_tls};
is_platform_check(_Option) ->
    false.

-spec name_check([[{verify_hostname, boolean()}]]) -> [{atom(), term()}].
name_check([[{verify_hostname, false}]]) -> [{server_name_indication, disable}];
name_check(_) -> [].

-spec unless_given([{atom(), term()}], [{atom(), term()}]) -> [{atom(), term()}].
unless_given(Defaults, Options) ->
    [Default || {Key, _} = Default <- Defaults, not lists:keymember(Key, 1, Options)] ++ Options.

%% Production means that peers are verified, unless the caller says otherwise.
-spec trust(boolean()) -> [{atom(), term()}].
trust(true) ->
    [];
trust(false) ->
    case is_production(setting("MACULA_TLS_MODE", tls_mode)) of
        true ->
            CaFile = setting("MACULA_TLS_CACERTFILE", tls_cacertfile),
            Hostname = setting("MACULA_TLS_VERIFY_HOSTNAME", tls_verify_hostname),
            Unchecked = lists:member(Hostname, [false, "false", "0", <<"false">>, <<"0">>]),
            [{verify, peer}, {verify_hostname, not Unchecked}] ++
                [{cacertfile, in_bytes(cacertfile, CaFile)} || CaFile =/= undefined];
        false ->
            []
    end.

%% An application environment may say it with an atom, or as Elixir does.
-spec is_production(term()) -> boolean().
is_production(Mode) ->
    Names = [production, prod, "production", "prod", <<"production">>, <<"prod">>],
    lists:member(Mode, Names).

%% What the environment says, else the platform's application environment.
-spec setting(os:env_var_name(), atom()) -> term().
setting(Variable, Parameter) ->
    case variable(Variable) of
        undefined -> application:get_env(macula, Parameter, undefined);
        Value -> Value
    end.

%% The files of our certificate: each from the options, the environment, or the platform's
%% application environment, in this order; else both from the platform's default place.
-spec certificate(map()) -> undefined | {binary(), binary()}.
certificate(Options) ->
    Cert = named(cert_file, Options, "MACULA_TLS_CERTFILE", tls_certfile),
    Key = named(key_file, Options, "MACULA_TLS_KEYFILE", tls_keyfile),
    case {Cert, Key} of
        {undefined, undefined} ->
            existing(?DEFAULT_CERT_FILE, ?DEFAULT_KEY_FILE, fun(_Path, _Why) -> ok end);
        {_, undefined} ->
            alone(Cert);
        {undefined, _} ->
            alone(Key);
        {_, _} ->
            existing(Cert, Key, fun warn/2)
    end.

%% What an application environment says may be any term.
-spec named(atom(), map(), os:env_var_name(), atom()) -> term().
named(Option, Options, Variable, Parameter) ->
    Places = [
        maps:get(Option, Options, undefined),
        variable(Variable),
        application:get_env(macula, Parameter, undefined)
    ],
    case lists:filter(fun is_given/1, Places) of
        [Path | _] -> Path;
        [] -> undefined
    end.

%% Whether an option is more than a place for one. Whom to trust is not guessed from an empty name.
-spec is_said(term(), term()) -> boolean().
is_said(Key, Path) when Key =:= cert_file; Key =:= key_file -> is_given(Path);
is_said(cacertfile, undefined) -> false;
is_said(_Key, _Value) -> true.

%% Configurations say in several ways that a path is none: those of Elixir with `nil', an unset
%% variable that was copied into one with nothing.
-spec is_given(term()) -> boolean().
is_given(Path) -> not lists:member(Path, [undefined, nil, "", <<>>]).

-spec variable(os:env_var_name()) -> undefined | string().
variable(Name) ->
    case os:getenv(Name) of
        false -> undefined;
        "" -> undefined;
        Value -> Value
    end.

-spec is_path(term()) -> boolean().
is_path(Path) when is_binary(Path) -> Path =/= <<>>;
is_path(Path) -> io_lib:printable_unicode_list(Path) andalso Path =/= [].

-spec existing(term(), term(), fun((term(), string()) -> ok)) ->
    undefined | {binary(), binary()}.
existing(Cert, Key, Missing) ->
    case {found(Cert), found(Key)} of
        {{ok, CertName}, {ok, KeyName}} ->
            {CertName, KeyName};
        Found ->
            Sought = lists:zip([Cert, Key], tuple_to_list(Found)),
            _ = [Missing(Path, Why) || {Path, {error, Why}} <- Sought],
            undefined
    end.

%% Looked for by the very name that the native side will open.
-spec found(term()) -> {ok, binary()} | {error, string()}.
found(Path) ->
    case bytes(Path) of
        none -> {error, "no name of a file"};
        Name -> exists(Name, filelib:is_file(Name))
    end.

-spec exists(binary(), boolean()) -> {ok, binary()} | {error, string()}.
exists(Name, true) -> {ok, Name};
exists(_Name, false) -> {error, "no such file"}.

%% What the system calls a file. A binary is taken as it is: not every file's name is UTF-8.
-spec bytes(term()) -> binary() | none.
bytes(Path) when is_binary(Path) ->
    Path;
bytes(Path) when is_list(Path), Path =/= [] ->
    try unicode:characters_to_binary(Path, unicode, file:native_name_encoding()) of
        Name when is_binary(Name) -> Name;
        _NotSaid -> none
    catch
        error:badarg -> none
    end;
bytes(_Path) ->
    none.

%% What names no file is left for the native side to refuse.
-spec in_bytes(term(), term()) -> term().
in_bytes(cacertfile, Path) ->
    case bytes(Path) of
        none -> Path;
        Name -> Name
    end;
in_bytes(_Key, Value) ->
    Value.

-spec alone(term()) -> undefined.
alone(Path) ->
    ?LOG_WARNING(#{
        msg => "a certificate or key file alone is of no use, no certificate is shown",
        path => Path
    }),
    undefined.

-spec warn(term(), string()) -> ok.
warn(Path, Why) ->
    ?LOG_WARNING(#{msg => Why ++ ", so no certificate is shown", path => Path}).
